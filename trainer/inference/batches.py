"""Unaugmented batches of a view, in order."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from embae.datasets.loading.augment import Augment, ImageSpec
from embae.datasets.loading.batch import Batch, Work
from embae.datasets.loading.open_loader import LoaderName, open_loader
from embae.datasets.sampling.plan import SequentialSampler
from embae.datasets.sampling.view import View

EXTRACT = 128  # images at a time


def read_batches(view: View, rows: np.ndarray, spec: ImageSpec, device: torch.device, *, loader: LoaderName,
            threads: int | None, read: tuple[int, int] | None = None,
            size: int = EXTRACT) -> Generator[Batch, None, None]:
    """Unaugmented batches of rows of a view, in order.

    Args:
        view: The images.
        rows: `(N,)`, the rows; may be empty.
        spec: What the model takes.
        device: Where the images go.
        loader: What decodes.
        threads: Decoding threads.
        read: Height and width to resize to; by default what the model takes.
        size: Images at a time.
    """
    if not len(rows):
        return
    sampler = SequentialSampler(view, batch=min(size, len(rows)), rows=rows)
    # Seed and stage key the augmentation, and there is none.
    work = Work(sampler, spec, Augment(), seed=0, stage="", start=0, stop=len(sampler), read=read)
    opened = open_loader(work, loader=loader, device=device, threads=threads)
    try:
        yield from opened
    finally:
        opened.close()


@dataclass(frozen=True)
class Reading:
    """How images are read for scoring: what decodes, with how many threads, how many at a time."""

    loader: LoaderName = "dali"
    threads: int | None = None
    batch: int = 256
