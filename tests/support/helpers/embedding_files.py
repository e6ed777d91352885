"""Files of embeddings that are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embae.datasets.index.arrow_index import Index
from embae.trainer.deployment.vectors import Origin, Vectors, write_vectors
from helpers import tiny_run


def gallery(folder: Path, embeddings: np.ndarray) -> Vectors:
    """A file of embeddings in two pieces, of images of the dataset park."""
    index = Index.open(tiny_run.shards() / "park")
    rows = np.arange(len(embeddings)) % len(index)
    made = Origin("model", "park", index.fingerprint, ["train", "gallery"], str(index.root))
    half = len(embeddings) // 3
    write_vectors(folder / "some.arrow", made,
                  [(index, rows[:half], embeddings[:half]), (index, rows[half:], embeddings[half:])])
    return Vectors.open(folder / "some.arrow")
