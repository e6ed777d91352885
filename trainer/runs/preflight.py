"""Checks a run before any process group or GPU is used: on a login node, in a moment."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.index.records import Split
from embae.datasets.inspection.verification import check_rows
from embae.datasets.sampling.view import View
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import Stage
from embae.trainer.runs.run_datasets import datasets_read, open_index, open_indexes
from embae.trainer.runs.stage_data import open_sampler, open_view, placeholder_labels
from embae.trainer.runs.stage_init import NuisanceHeads, check_inits
from embae.trainer.runs.stage_notes import note_single_camera, note_small_cache


def check_run(recipe: Recipe, world_size: int, run: Path | None = None) -> None:
    """Opens every stage's data, and the target's, and checks every row of their indexes.

    Args:
        recipe: Checked.
        world_size: Number of ranks.
        run: The run folder, as for `check_inits`.

    Raises:
        DataError: Lists what is wrong, by stage or dataset.
        WeightsError: A stage's ``init`` does not exist or is damaged.
    """
    check_inits(recipe, run)
    damaged = dict(_damaged_datasets(recipe))
    mistakes, views, heads = list(damaged.values()), {}, NuisanceHeads(recipe)
    for name in recipe.run:
        stage = recipe.stages[name]
        if damaged.keys() & set(recipe.datasets(stage)):
            continue
        try:
            view, batch = _open_stage(recipe, name)
        except DataError as error:
            mistakes.append(str(error))
            continue
        views[name] = view
        if batch is not None:
            mistakes += _too_small(stage, name, batch, world_size)
        if stage.cluster:
            method = f"stages.{name}.cluster.{stage.cluster.key}"
            mistakes += [f"{method}.{mistake}" for mistake in stage.cluster.method.mistakes(len(view))]
        mistakes += heads.missing(name, view.cameras())
    mistakes += _target_mistakes(recipe, damaged)
    note_single_camera(recipe, views)
    note_small_cache(recipe, views)
    if mistakes:
        raise DataError("\n".join(dict.fromkeys(mistakes)))  # stages share mistakes


def _damaged_datasets(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Dataset and mistake, for each dataset of the run that cannot be opened or has a damaged row."""
    for dataset in datasets_read(recipe):
        try:
            for index in open_indexes(recipe, [dataset]):
                check_rows(index)
        except DataError as error:
            yield dataset, str(error)


def _open_stage(recipe: Recipe, name: str) -> tuple[View, int | None]:
    """The images of a stage, and the size of its global batch if it trains."""
    stage = recipe.stages[name]
    if not stage.loss:
        return open_view(recipe, name), None
    labels = placeholder_labels(recipe, stage) if stage.data.labels else None
    sampler = open_sampler(recipe, name, labels=labels)
    return sampler.view, sampler.batch


def _too_small(stage: Stage, name: str, batch: int, world_size: int) -> Iterator[str]:
    if isinstance(stage.data.P, dict) and stage.data.K:
        batch = min(stage.data.P.values()) * stage.data.K
    if batch < world_size * stage.accumulate:
        ranks = f"{world_size} rank{'s' * (world_size > 1)}"
        parts = f" × {stage.accumulate} parts" if stage.accumulate > 1 else ""
        yield (f"stages.{name}.data: a global batch of {batch} images cannot be shared by {ranks}{parts}; set a larger "
               "batch, or start fewer ranks with --nproc")


def _target_mistakes(recipe: Recipe, damaged: Collection[str]) -> Iterator[str]:
    """Mistakes that prevent scoring the target: it must be one dataset, and its splits must have rows."""
    if recipe.data.target not in datasets_read(recipe) or recipe.data.target in damaged:
        return
    try:
        target = open_index(recipe, recipe.data.target)
        splits: tuple[Split, ...] = ("query", "gallery")
        if recipe.evaluate and any(target.count(split) for split in splits):
            for split in splits:
                View([target], split)
    except DataError as error:
        yield str(error)
