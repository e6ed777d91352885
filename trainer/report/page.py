"""The page: template, style and script around the sections; it loads nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from string import Template

from embae.trainer.report import overview
from embae.trainer.report.curves import curves
from embae.trainer.report.evidence import Evidence
from embae.trainer.report.markup import Markup, joined, section, tag, text
from embae.trainer.report.records import read_records
from embae.trainer.report.stages import stages
from embae.trainer.runs.summary import RunSummary

_CONTENTS = {"scores": "Scores", "stages": "Stages", "curves": "Curves", "lists": "Ranked lists", "cameras": "Cameras",
             "distances": "Distances", "maps": "Maps", "hardest": "Hardest", "data": "Data",
             "environment": "Environment"}


def page(facts: RunSummary, evidence: Evidence | str, maps: Markup) -> str:
    """The whole page.

    Args:
        facts: The run.
        evidence: What its target's sections are drawn from, or why there is nothing.
        maps: The section of the maps.
    """
    records = read_records(facts.run)
    parts = [overview.scores(facts), stages(facts, records), curves(facts, records),
             *_on_images(evidence, maps), overview.data(facts), overview.environment(facts)]
    name = facts.recipe.name
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    contents = joined(tag("a", title, href=f"#{anchor}") for anchor, title in _CONTENTS.items()
                      if any(f'id="{anchor}"' in part for part in parts))
    data = facts.recipe.data
    subtitle = f"{', '.join(data.sources)} → {data.target}" if data.sources else f"on {data.target}"
    return Template(_file("page.html")).substitute(
        digest=digest, title=text(f"{name} – embae"), style=_file("page.css"), script=script, name=text(name),
        subtitle=text(f"{subtitle}, seed {facts.recipe.seed}"), contents=contents,
        summary=overview.summary(facts), sections=joined(parts))


def _on_images(evidence: Evidence | str, maps: Markup) -> list[Markup]:
    if isinstance(evidence, str):
        return [section("lists", "Ranked lists, cameras and distances", tag("p", evidence, class_="none")), maps]
    from embae.trainer.report.camera_pairs import camera_pairs
    from embae.trainer.report.distances import distances
    from embae.trainer.report.identities import identities
    from embae.trainer.report.pictures import Pictures
    from embae.trainer.report.ranked import ranked_lists
    pictures = Pictures(evidence.index)
    try:
        return [ranked_lists(evidence, pictures), camera_pairs(evidence), distances(evidence), maps,
                identities(evidence, pictures)]
    finally:
        pictures.close()


def _file(name: str) -> str:
    return resources.files("embae.trainer.report").joinpath(name).read_text(encoding="utf-8")
