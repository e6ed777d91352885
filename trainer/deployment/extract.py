"""A trained model's embeddings of a dataset, into one file: what ``embae extract`` and ``embae search`` do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.image_source import ImageSource
from embae.datasets.index.records import Split
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.sampling.view import View
from embae.trainer.deployment.vectors import Origin, Vectors, write_vectors
from embae.trainer.inference.embeddings import embedded, note_unknown_cameras
from embae.trainer.inference.options import Inference
from embae.trainer.inference.shared_array import content_key
from embae.trainer.model.embae import EmbAE
from embae.trainer.recipe.scoring import TTA
from embae.trainer.runtime.distributed import broadcast_object, on_first_rank


def model_key(model: EmbAE, spec: ImageSpec, tta: TTA) -> str:
    """A key of a model and its input: embeddings under one key may be compared."""
    cameras = [model.cameras, *([names] if (names := sorted(model.known_cameras.names.items())) else [])]
    return content_key([spec.size, spec.mean, spec.std, tta, *cameras], np.empty(0, np.uint64), model)


def origin(key: str, pointed: ImageSource, splits: Sequence[Split]) -> Origin:
    """The origin of a model's embeddings of some splits of an image source."""
    named = {index.name: {name: camid for camid, name in index.camera_names.items()} for index in pointed.indexes}
    return Origin(key, pointed.name, pointed.fingerprint, [one for one in splits if pointed.count(one)],
                  str(pointed.root), {name: cameras for name, cameras in named.items() if cameras})


def extract_to(path: Path, expected: Origin, model: EmbAE, pointed: ImageSource, inference: Inference) -> bool:
    """Writes a file of embeddings, each rank computing its share; those that `evaluation.evaluate` would compute.

    A start after a kill resumes. Nothing is done if the file exists already.

    Args:
        path: The file; until it is complete, a folder beside it has the finished pieces.
        expected: The origin that the file will state.
        model: In eval mode, on the rank's device.
        pointed: The images.
        inference: How images go through the model; its cache is ignored.

    Returns:
        Whether the file was written now.

    Raises:
        DataError: An image cannot be read.
        FloatingPointError: An embedding is not finite.
    """
    world = inference.world
    views = [View([index for index in pointed.indexes if index.count(split)], split)  # type: ignore[arg-type]
             for split in expected.splits]
    if world.first:
        note_unknown_cameras(model, views)
    if broadcast_object(on_first_rank(world, lambda: _is_there(path, expected))):
        return False
    inference = replace(inference, cache=path.with_name(f"{path.name}.partial"))
    with ExitStack() as stack:
        pieces = []
        for split, view in zip(expected.splits, views, strict=True):
            embeddings, start = stack.enter_context(embedded(model, view, inference)), 0
            for index in view.indexes:
                rows = index.rows(split)  # type: ignore[arg-type]
                index_rows = np.arange(rows.start, rows.stop)
                pieces.append((index, index_rows, embeddings[start:start + len(index_rows)]))
                start += len(index_rows)
        on_first_rank(world, lambda: write_vectors(path, expected, pieces))
    return True


def _is_there(path: Path, expected: Origin) -> bool:
    try:
        return Vectors.open(path).origin == expected
    except DataError:
        return False
