"""What a run folder says of itself, for people: recipe, what it ran with, stages, scores, the data it saw.

Nothing here needs a finished run: what is missing is None, or a sentence that says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embae.datasets.errors import DataError
from embae.datasets.files.json_files import read_json
from embae.datasets.files.plain import read_bytes
from embae.datasets.files.plain_tree import MOST
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import SPLITS
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.schema import Recipe
from embae.trainer.retrieval.ranking_options import RankingOptions
from embae.trainer.runs.folder import recipe_of
from embae.trainer.runs.score_table import are_scores
from embae.trainer.runs.stage_data import open_all
from embae.trainer.runs.stage_folder import Done, done, is_done


@dataclass(frozen=True)
class DatasetScores:
    """Scores of one dataset: those of ``evaluation/<dataset>.json``."""

    dataset: str
    tta: str
    refined: RankingOptions
    rows: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class DatasetSummary:
    """A dataset that a run names.

    Attributes:
        name: As its card has it.
        role: What the run does with it, in words.
        images: Images by split; empty where it is not here.
        identities: Identities of its training images.
        cameras: Cameras of its training images.
        licence, notes, reader: As its card states them; empty where it states none.
        missing: Why it cannot be read; empty where it can.
    """

    name: str
    role: str
    images: dict[str, int]
    identities: int = 0
    cameras: int = 0
    licence: str = ""
    notes: str = ""
    reader: str = ""
    missing: str = ""


@dataclass(frozen=True)
class RunSummary:
    """A run.

    Attributes:
        run: Its folder.
        recipe: As resolved.
        ran_with: The lines at the head of ``recipe.yaml``: versions, git commit, world size, date.
        took: Stage → what it took; None where it is not done.
        scores: One entry a scored dataset, the target first.
        data: Sources, then the target.
        ended: What ``stopped`` and ``failed`` say of how it ended, if not well.
    """

    run: Path
    recipe: Recipe
    ran_with: list[str]
    took: dict[str, Done | None]
    scores: list[DatasetScores]
    data: list[DatasetSummary]
    ended: list[str]

    @property
    def unfinished(self) -> list[str]:
        """Stages that are not done."""
        return [stage for stage, took in self.took.items() if took is None]


def read_facts(run: Path) -> RunSummary:
    """Reads a run folder, whatever state it is in.

    Raises:
        RecipeError: It has no recipe, or a file of it is damaged.
    """
    path = run / "recipe.yaml"
    if not os.path.isfile(path):  # not Path.is_file, which a name too long makes raise
        raise RecipeError(f"{run}: not a run folder, recipe.yaml is missing; wanted what embae train writes, such as "
                          "runs/embae-cam")
    recipe = recipe_of(run)
    took = {stage: done(run, stage) if is_done(run, stage) else None for stage in recipe.run}
    return RunSummary(run, recipe, _head(path), took, _scores(run, recipe), list(_data(recipe)), list(_ended(run)))


def _head(path: Path) -> list[str]:
    lines = read_bytes(path, MOST).decode("utf-8", "replace").splitlines()
    return [line.removeprefix("# ") for line in lines[:2] if line.startswith("# ")]


def _scores(run: Path, recipe: Recipe) -> list[DatasetScores]:
    """Every ``evaluation/<dataset>.json`` that holds scores, the target's first; what is damaged is left out."""
    found = []
    files = (run / "evaluation").glob("*.json")
    for path in sorted(files, key=lambda path: (path.stem != recipe.data.target, path.name)):
        try:
            tree = read_json(path)
        except (OSError, ValueError):
            continue
        if not isinstance(tree, dict) or not isinstance(tree.get("rows"), dict):
            continue  # what probes found
        rows = {row: scores for row, scores in tree["rows"].items() if are_scores(scores)}
        if rows:
            found.append(
                DatasetScores(
                    str(tree.get("dataset", path.stem)), str(tree.get("tta", "")), RankingOptions.of(tree), rows
                )
            )
    return found


def _data(recipe: Recipe) -> Iterator[DatasetSummary]:
    target = recipe.data.target
    for name in [*recipe.data.sources, target]:
        role = _role(recipe, name == target)
        try:
            indexes = open_all(recipe, [name])
        except (DataError, OSError) as error:
            yield DatasetSummary(name, role, {}, missing=str(error))
            continue
        for index in indexes:  # several where the name is a merged set's
            yield _seen(index, role)


def _role(recipe: Recipe, is_target: bool) -> str:
    """What a run does with the training images of its sources, or of its target."""
    among = ("target", "all") if is_target else ("sources", "all")
    stages = [recipe.stages[name] for name in recipe.run if recipe.stages[name].data.from_ in among]
    labelled = any(stage.data.labelled and not (is_target and stage.data.labels) for stage in stages)
    kind = "target" if is_target else "source"
    if labelled:
        return f"{kind}, trained on with labels"
    if any(stage.loss for stage in stages):
        return f"{kind}, trained on without labels"
    return f"{kind}, {'statistics taken, not trained on' if stages else 'not trained on'}"


def _seen(index: Index, role: str) -> DatasetSummary:
    counts, source = index.card["counts"], index.card.get("source")
    train = counts["train"]
    cameras, identities = train.get("cameras"), train.get("identities")
    said = {key: str(index.card[key]) for key in ("licence", "notes") if index.card.get(key)}
    return DatasetSummary(index.name, role, {split: counts[split]["images"] for split in SPLITS},
                identities if isinstance(identities, int) else 0, len(cameras) if isinstance(cameras, dict) else 0,
                reader=str(source.get("reader", "")) if isinstance(source, dict) else "", **said)


def _ended(run: Path) -> Iterator[str]:
    for name in ("stopped", "failed"):
        try:
            found = read_json(run / name)
        except (OSError, ValueError):
            continue
        why = found.get("why") if isinstance(found, dict) else None
        yield f"{name}: {str(why)[:500]}" if why else name
