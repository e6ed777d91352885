"""All that can be known before a process group or a GPU is touched: on a login node, in a moment."""

from __future__ import annotations

from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.index import CARD, Index
from embae.datasets.plan import PKSampler, ShuffledSampler
from embae.datasets.progress import progress
from embae.datasets.records import Split
from embae.datasets.view import View
from embae.trainer.errors import ExportError
from embae.trainer.schema import Recipe, Stage


def draw_synthetic(recipe: Recipe) -> None:
    """Draws and shards the recipe's synthetic datasets that are not there yet.

    Raises:
        DataError: An option that the generator does not take.
    """
    for name, options in recipe.data.synthetic.items():
        if not (recipe.data.root / name / CARD).exists():
            from embae.datasets.readers import read
            from embae.datasets.sharding import write_shards
            records = read("synthetic", Path(), {key: str(value) for key, value in options.items()})
            write_shards(name, records, recipe.data.root, source={"reader": "synthetic", "options": dict(options)},
                         progress=progress)


def open_stage(recipe: Recipe, name: str) -> PKSampler | ShuffledSampler:
    """The batch plan of a stage, over its datasets.

    Raises:
        DataError: A dataset is missing or damaged, or has too few images for the batch.
    """
    stage = recipe.stages[name]
    view = View([Index.open(recipe.data.root / dataset) for dataset in _datasets(recipe, stage)], "train")
    data = stage.data
    if data.batch is not None:
        return ShuffledSampler(view, batch=data.batch, seed=recipe.seed, stage=name)
    assert data.P is not None and data.K is not None  # the schema's promise
    for key, mapping in (("P", data.P), ("weights", data.weights)):
        if isinstance(mapping, dict) and set(mapping) != set(view.names):
            raise DataError(f"stages.{name}.data.{key}: found {', '.join(mapping)}; wanted each of {', '.join(view.names)}")
    return PKSampler(view, P=data.P, K=data.K, seed=recipe.seed, stage=name, weights=data.weights, mix=data.mix)


def check(recipe: Recipe, world_size: int) -> None:
    """Opens every stage's data, and the target's.

    Raises:
        DataError: Naming the stage or dataset and what is wrong.
        ExportError: What a stage's ``init`` points at does not exist.
    """
    for name in recipe.run:
        stage = recipe.stages[name]
        sampler = open_stage(recipe, name)
        _check_init(stage, name, recipe.run)
        parts = world_size * stage.accumulate
        if sampler.batch < parts:
            raise DataError(f"stages.{name}: a global batch of {sampler.batch} images cannot be shared by {world_size} ranks × "
                            f"{stage.accumulate} parts; set a larger batch, or start fewer ranks")
    if recipe.evaluate:
        target = Index.open(recipe.data.root / recipe.data.target)
        splits: tuple[Split, ...] = ("query", "gallery")
        if any(target.count(split) for split in splits):
            for split in splits:
                View([target], split)


def _datasets(recipe: Recipe, stage: Stage) -> list[str]:
    return recipe.data.sources if stage.data.from_ == "sources" else [recipe.data.target]


def _check_init(stage: Stage, name: str, run: list[str]) -> None:
    path = Path(stage.init)
    if stage.init not in ("hub", "random", *run) and not path.exists():
        raise ExportError(f"stages.{name}.init: {path} does not exist; wanted hub, random, a weights file (.safetensors, .pth), "
                          f"an export's folder, or an earlier stage ({', '.join(run)})")
