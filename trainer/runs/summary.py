"""Summary of a run folder for reports and model cards: recipe, versions, stages, scores, datasets.

The run need not have finished: what is missing is None, or a sentence that says why.
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
from embae.trainer.runs.folder import read_recipe
from embae.trainer.runs.run_datasets import open_indexes
from embae.trainer.runs.score_table import are_scores
from embae.trainer.runs.stage_folder import StageCost, is_done, read_cost


@dataclass(frozen=True)
class DatasetScores:
    """Scores of one dataset, from ``evaluation/<dataset>.json``."""

    dataset: str
    tta: str
    refined: RankingOptions
    rows: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class DatasetSummary:
    """A dataset that a run names.

    Attributes:
        name: From its card.
        role: What the run does with it, in words.
        images: Images by split; empty where it cannot be read.
        identities: Identities of its training images.
        cameras: Cameras of its training images.
        licence, notes, reader: From its card; empty where it states none.
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
        ran_with: The first lines of ``recipe.yaml``: versions, git commit, world size, date.
        costs: Stage → what it cost; None where it is not done.
        scores: One entry for each scored dataset, the target first.
        data: Sources, then the target.
        ended: What the files ``stopped`` and ``failed`` say, if the run did not finish.
    """

    run: Path
    recipe: Recipe
    ran_with: list[str]
    costs: dict[str, StageCost | None]
    scores: list[DatasetScores]
    data: list[DatasetSummary]
    ended: list[str]

    @property
    def unfinished(self) -> list[str]:
        """Stages that are not done."""
        return [stage for stage, cost in self.costs.items() if cost is None]


def read_summary(run: Path) -> RunSummary:
    """Reads a run folder, whether or not the run has finished.

    Raises:
        RecipeError: It has no recipe, or one of its files is damaged.
    """
    path = run / "recipe.yaml"
    if not os.path.isfile(path):  # not Path.is_file, which raises for a name that is too long
        raise RecipeError(f"{run}: not a run folder, recipe.yaml is missing; expected a folder written by embae train, "
                          "such as runs/embae-cam")
    recipe = read_recipe(run)
    costs = {stage: read_cost(run, stage) if is_done(run, stage) else None for stage in recipe.run}
    return RunSummary(run, recipe, _head(path), costs, _scores(run, recipe), list(_datasets(recipe)), list(_ended(run)))


def _head(path: Path) -> list[str]:
    lines = read_bytes(path, MOST).decode("utf-8", "replace").splitlines()
    return [line.removeprefix("# ") for line in lines[:2] if line.startswith("# ")]


def _scores(run: Path, recipe: Recipe) -> list[DatasetScores]:
    """The scores of every ``evaluation/<dataset>.json``, the target's first; damaged files are left out."""
    scores = []
    files = (run / "evaluation").glob("*.json")
    for path in sorted(files, key=lambda path: (path.stem != recipe.data.target, path.name)):
        try:
            tree = read_json(path)
        except (OSError, ValueError):
            continue
        if not isinstance(tree, dict) or not isinstance(tree.get("rows"), dict):
            continue  # results of probes
        rows = {row: entry for row, entry in tree["rows"].items() if are_scores(entry)}
        if rows:
            dataset, tta = str(tree.get("dataset", path.stem)), str(tree.get("tta", ""))
            scores.append(DatasetScores(dataset, tta, RankingOptions.of(tree), rows))
    return scores


def _datasets(recipe: Recipe) -> Iterator[DatasetSummary]:
    target = recipe.data.target
    for name in [*recipe.data.sources, target]:
        role = _role(recipe, name == target)
        try:
            indexes = open_indexes(recipe, [name])
        except (DataError, OSError) as error:
            yield DatasetSummary(name, role, {}, missing=str(error))
            continue
        for index in indexes:  # several where the name is that of a merged set
            yield _dataset(index, role)


def _role(recipe: Recipe, is_target: bool) -> str:
    """What a run does with the training images of its sources, or of its target."""
    kind = "target" if is_target else "source"
    origins = ("target", "all") if is_target else ("sources", "all")
    stages = [recipe.stages[name] for name in recipe.run if recipe.stages[name].data.from_ in origins]
    if any(stage.data.labelled and not (is_target and stage.data.labels) for stage in stages):
        return f"{kind}, trained on with labels"
    if any(stage.loss for stage in stages):
        return f"{kind}, trained on without labels"
    return f"{kind}, {'statistics taken, not trained on' if stages else 'not trained on'}"


def _dataset(index: Index, role: str) -> DatasetSummary:
    counts, source = index.card["counts"], index.card.get("source")
    cameras, identities = counts["train"].get("cameras"), counts["train"].get("identities")
    return DatasetSummary(
        name=index.name,
        role=role,
        images={split: counts[split]["images"] for split in SPLITS},
        identities=identities if isinstance(identities, int) else 0,
        cameras=len(cameras) if isinstance(cameras, dict) else 0,
        licence=str(index.card.get("licence") or ""),
        notes=str(index.card.get("notes") or ""),
        reader=str(source.get("reader", "")) if isinstance(source, dict) else "",
    )


def _ended(run: Path) -> Iterator[str]:
    for name in ("stopped", "failed"):
        try:
            tree = read_json(run / name)
        except (OSError, ValueError):
            continue
        why = tree.get("why") if isinstance(tree, dict) else None
        yield f"{name}: {str(why)[:500]}" if why else name
