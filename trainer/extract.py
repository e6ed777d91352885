"""A trained model's embeddings of a dataset, into one file: what ``embae extract`` and ``embae search`` do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from embae.datasets.augment import ImageSpec
from embae.datasets.card import CARD
from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.records import Split
from embae.datasets.view import View
from embae.trainer.distributed import World, broadcast_object, on_first_rank
from embae.trainer.evaluate import Reading, embedded, note_strange_cameras
from embae.trainer.features import content_key
from embae.trainer.footage import footage
from embae.trainer.parts import EmbAE
from embae.trainer.schema import TTA
from embae.trainer.trained import Trained
from embae.trainer.vectors import Origin, Vectors, write_vectors


def model_key(model: EmbAE, spec: ImageSpec, tta: TTA) -> str:
    """A name for what a model's embeddings mean: those under one name may be compared."""
    return content_key([spec.size, spec.mean, spec.std, tta, model.cameras], np.empty(0, np.uint64), model)


def origin(key: str, index: Index, splits: Sequence[Split]) -> Origin:
    """What a model makes of a dataset's splits."""
    return Origin(key, index.name, index.fingerprint, [one for one in splits if index.count(one)], str(index.root))


def extract_to(path: Path, made: Origin, model: EmbAE, index: Index, spec: ImageSpec, tta: TTA, world: World,
               reading: Reading) -> bool:
    """Writes a file of embeddings, each rank computing its share; those that `embae.trainer.evaluate` would compute.

    A start after a kill goes on where the last one was. Nothing is done where the file is there already.

    Args:
        path: The file; while it is made, a folder beside it holds what there is of it.
        made: What is to be in it.
        model: In eval mode, on the rank's device.
        index: The dataset.
        spec: What the model takes.
        tta: Test-time augmentation.
        world: This rank.
        reading: How images are read.

    Returns:
        Whether anything had to be done.

    Raises:
        DataError: An image cannot be read.
        FloatingPointError: An embedding is not finite.
    """
    if broadcast_object(on_first_rank(world, lambda: _is_there(path, made))):
        return False
    if world.first:
        note_strange_cameras(model, [View([index], split) for split in made.splits])  # type: ignore[arg-type]
    beside = path.with_name(f"{path.name}.partial")
    with ExitStack() as stack:
        pieces = []
        for split in made.splits:
            view = View([index], split)  # type: ignore[arg-type]
            found = stack.enter_context(embedded(model, view, spec, tta, world, reading, beside))
            rows = index.rows(split)  # type: ignore[arg-type]
            pieces.append((np.arange(rows.start, rows.stop), found))
        on_first_rank(world, lambda: write_vectors(path, made, index, pieces))
    return True


def pointed_at(where: str, trained: Trained, keep: Path, pattern: str | None) -> Index:
    """The dataset that a person names beside a run: a name below its ``data.root``, or what `footage` takes.

    Args:
        where: As the command line has it.
        trained: The run.
        keep: Where folders of images are kept sharded.
        pattern: For paths in a folder of images.

    Raises:
        DataError: There is no such thing, or an image in it cannot be decoded.
    """
    root = trained.recipe.data.root if trained.recipe else None
    if isinstance(root, Path) and not os.path.exists(where) and os.path.isfile(root / where / CARD):
        where = str(root / where)
    return footage(where, pattern=pattern, keep=keep)


def reading_of(trained: Trained) -> Reading:
    """How a run's images are read for scoring."""
    recipe = trained.recipe
    return Reading(recipe.data.loader, recipe.data.threads, recipe.scoring.batch) if recipe else Reading()


def _is_there(path: Path, made: Origin) -> bool:
    try:
        return Vectors.open(path).origin == made
    except DataError:
        return False
