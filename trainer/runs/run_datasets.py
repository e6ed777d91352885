"""The datasets that a recipe names: drawn where they are synthetic, and opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embae.datasets.console.progress import progress
from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import CARD
from embae.datasets.index.merged import Merged, check_distinct, is_merged
from embae.trainer.recipe.schema import Recipe


def draw_synthetic(recipe: Recipe) -> None:
    """Draws and shards the synthetic datasets that the recipe reads and that do not exist yet.

    Raises:
        DataError: The generator does not have one of the options.
    """
    root = recipe.data.root
    for name, options in recipe.data.synthetic.items():
        assert isinstance(root, Path)  # checked by the recipe's schema
        if name in (*recipe.data.sources, recipe.data.target) and not (root / name / CARD).exists():
            from embae.datasets.readers.read import read_records
            from embae.datasets.sharding.write_shards import write_shards
            records = read_records("synthetic", Path(), {key: str(value) for key, value in options.items()})
            write_shards(name, records, root, source={"reader": "synthetic", "options": dict(options)},
                         progress=progress)


def datasets_read(recipe: Recipe) -> list[str]:
    """Names of the datasets that a run reads, each once."""
    of_stages = [dataset for name in recipe.run for dataset in recipe.datasets(recipe.stages[name])]
    return list(dict.fromkeys([*of_stages, *([recipe.data.target] if scores_target(recipe) else [])]))


def scores_target(recipe: Recipe) -> bool:
    """Whether a run scores a model on the target."""
    return bool(recipe.evaluate) or any(recipe.stages[name].evaluate_every for name in recipe.run)


def can_score(index: Index) -> bool:
    """Whether a dataset has labelled queries and a gallery."""
    return index.count("gallery") > 0 and bool(index.labelled[index.rows("query")].any())


def open_index(recipe: Recipe, dataset: str) -> Index:
    """Opens one dataset below ``data.root``.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        return Index.open(recipe.data.root / dataset)
    except DataError as error:
        raise DataError(f"{error} (data.root is {recipe.data.root})") from error


def open_indexes(recipe: Recipe, datasets: Sequence[str]) -> list[Index]:
    """Opens the datasets that a recipe names: one index each, or one for each member of a merged set.

    Raises:
        DataError: A dataset is missing or damaged, a member of a merged set has changed since the merge, or two
            datasets cannot be distinguished.
    """
    indexes: list[Index] = []
    for dataset in datasets:
        folder = recipe.data.root / dataset
        indexes += Merged.open(folder).indexes if is_merged(folder) else [open_index(recipe, dataset)]
    check_distinct(indexes)
    return indexes
