"""The model card of an exported model, Markdown: only what its files, its run and the cards of its data state."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from embae.trainer.deployment.formats.format import ExportFormat
from embae.trainer.runs.score_table import SHOWN
from embae.trainer.runs.summary import DatasetSummary, RunSummary

_UNKNOWN = "not stated"


def model_card(about: dict[str, Any], export_format: ExportFormat, facts: RunSummary | None) -> str:
    """The card as the text of ``README.md``, with the front matter that the Hugging Face hub reads.

    Args:
        about: What the exported file says about the model.
        export_format: Its format.
        facts: The run that the model comes from; None if only its export was given.
    """
    parts = [f"---\nlibrary_name: {export_format.library}\npipeline_tag: image-feature-extraction\n"
             "tags:\n- person-re-identification\n- embae\n---\n", f"# {_text(about['name'])}\n", _what(about),
             "## Use\n", _use(about, export_format)]
    if facts is not None:
        parts += ["## Scores\n", *_scores(about, facts), "## Data\n", *_data(facts.data), "## Training\n",
                  *_stages(about, facts)]
    return "\n".join([*parts, _DUTIES.strip(), "\n## Licence\n", _licence(facts)]) + "\n"


def _what(about: dict[str, Any]) -> str:
    height, width = about["input"]["shape"][2:]
    by_camera = about["camera"]
    cameras = (f" It is calibrated on {len(by_camera['cameras'])} cameras, and normalises each image with the "
               "statistics of its camera.") if by_camera else ""
    return (f"An embedding of images of people for re-identification: images of one person are closer together than "
            f"those of others. Backbone `{_text(about['backbone'])}`, input {height} × {width} (height × width), "
            f"{about['output']['shape'][1]} numbers out.{cameras} Written by embae {_text(about['embae'])} from the "
            f"stage `{_text(about['stage'])}`.\n")


def _use(about: dict[str, Any], export_format: ExportFormat) -> str:
    images, norm = about["input"], about["normalisation"]
    height, width = images["shape"][2:]
    lines = [f"- `{images['name']}`: float32, (batch, 3, {height}, {width}), RGB, 0 to 1. Resize {about['resize']}."]
    if about["camera"]:
        lines.append("- `camera`: int64, (batch), each image's place in `cameras` of `embae.json`; −1 for a camera "
                     "that is not among them.")
    lines.append(f"- mean {norm['mean']} and deviation {norm['std']} are "
                 + ("applied inside; do not normalise before." if norm["inside"] else "not applied inside: normalise."))
    lines.append(f"- `{about['output']['name']}`: compare by {about['output']['compare']}.")
    worst = max(about["difference"].values())
    lines.append(f"- Largest difference from PyTorch, relative to an embedding's length: {worst:.1e} "
                 f"(batches of {', '.join(about['difference'])}).")
    text = "\n".join(lines) + f"\n\n```python\n{export_format.example(about).strip()}\n```\n"
    if about["camera"] and export_format.card_note:
        text += f"\n{export_format.card_note}\n"
    return text


def _scores(about: dict[str, Any], facts: RunSummary) -> Iterator[str]:
    row = next((row for row, stage in facts.recipe.evaluate.items() if stage == about["stage"]), None)
    with_scores = [scored for scored in facts.scores if row in scored.rows]
    if row is None or not with_scores:
        yield "None were taken of this model.\n"
        return
    yield "| dataset | " + " | ".join(SHOWN) + " | queries | test-time augmentation |"
    yield "| --- |" + " ---: |" * (len(SHOWN) + 1) + " --- |"
    for scored in with_scores:
        scores = scored.rows[row]
        cells = [_score(scores, name) for name in SHOWN]
        how = f"{scored.tta}{scored.refined.suffix}"
        yield f"| {_text(scored.dataset)} | " + " | ".join(cells) + f" | {scores['queries']:,} | {how} |"
    yield ("\nMarket-1501's protocol, mAP by the trapezoid; in brackets 95 % intervals over resampled identities. The "
           "exported file holds no test-time augmentation: average the embeddings of an image and its mirror image to "
           "have `flip`.\n")


def _score(scores: dict[str, Any], name: str) -> str:
    interval = scores["interval"].get(name)
    return f"{scores[name]:.3f}" + (f" ({interval[0]:.3f} … {interval[1]:.3f})" if interval else "")


def _data(data: list[DatasetSummary]) -> Iterator[str]:
    yield "| dataset | what for | training images | identities | cameras | query, gallery | licence of its card |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    for seen in data:
        if seen.missing:
            yield f"| {_text(seen.name)} | {seen.role} | not here when this was written | | | | {_UNKNOWN} |"
            continue
        images = f"{seen.images['train']:,} | {seen.identities:,} | {seen.cameras} | {seen.images['query']:,}, "
        yield (f"| {_text(seen.name)} | {seen.role} | {images}{seen.images['gallery']:,} | "
               f"{_text(seen.licence) or _UNKNOWN} |")
    notes = [f"- {_text(seen.name)}: {_text(seen.notes)}" for seen in data if seen.notes]
    drawn = [_text(seen.name) for seen in data if seen.reader == "synthetic"]
    if drawn:
        notes.append(f"- {', '.join(drawn)}: people and cameras that embae draws; no real people are in it.")
    yield "\n".join(["", *notes, ""] if notes else [""])


def _stages(about: dict[str, Any], facts: RunSummary) -> Iterator[str]:
    recipe = facts.recipe
    ran_with = " ".join(f"{_text(line)}." for line in facts.ran_with)
    yield f"Recipe `{recipe.name}`, seed {recipe.seed}. {ran_with}\n"
    yield "| stage | starts from | trains | frozen | data | steps | images seen |"
    yield "| --- | --- | --- | --- | --- | ---: | ---: |"
    for name in recipe.lineage(about["stage"]):
        stage, took = recipe.stages[name], facts.costs[name]
        frozen = [part for part, use in stage.parts.items() if use == "frozen"]
        what = ", ".join(stage.trained()) or f"nothing: {stage.kind}"
        counts = f"{took.steps:,} | {took.images:,}" if took else "not done | "
        yield f"| {name} | {_text(stage.init)} | {what} | {', '.join(frozen)} | {stage.data.from_} | {counts} |"
    yield ""


def _licence(facts: RunSummary | None) -> str:
    data = facts.data if facts else []
    stated = sorted({f"{_text(seen.name)}: {_text(seen.licence)}" for seen in data if seen.licence})
    return ("None is stated for these weights; whoever publishes them chooses one that the terms of the data, and of "
            f"any weights they started from, allow. The cards of the data state {'; '.join(stated) or 'none'}.")


_DUTIES = """
## Intended use, and what it is not for

Finding images of the same person across the cameras of one place, where those who run it may process such images:
research, counting how people move through a place, searching with a person in the loop. Its answers are rankings, not
identifications: scores say how often the first one is wrong.

Not for deciding anything about a person by itself, for identifying people in public without a legal basis, for
following people who were not told, or for inferring anything about them. Nothing was measured on people
who change their clothes, nor by groups of people: measure it on your own cameras and people before you rely on it.

## Privacy

Images of recognisable people are personal data, and embeddings that tell people apart are derived from them and may be
biometric data (in the EU: GDPR, Articles 4 and 9, and the AI Act's rules on biometric systems). Whoever uses this model
answers for a legal basis, for telling people, for a data protection impact assessment, for keeping images and
embeddings only as long as needed and under access control, and for people's rights to see and to erase them.
"""


def _text(text: Any) -> str:
    """Text of a stranger's file in Markdown: on one line, nothing of it read as markup."""
    flat = " ".join(str(text).split())[:300]
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", flat) if not re.fullmatch(r"[\w.-]+", flat, re.ASCII) else flat
