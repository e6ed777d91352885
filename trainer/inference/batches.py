"""Unaugmented batches of a view, in order."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Batch, Work
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.loading.open_loader import open_loader
from embae.datasets.sampling.sequential_sampler import SequentialSampler
from embae.datasets.sampling.view import View
from embae.trainer.inference.options import Reading


def read_batches(view: View, rows: np.ndarray, spec: ImageSpec, reading: Reading, device: torch.device,
                 resize: tuple[int, int] | None = None) -> Generator[Batch, None, None]:
    """Yields unaugmented batches of rows of a view, in order.

    Args:
        view: The images.
        rows: `(N,)`, the rows; may be empty.
        spec: The model's input.
        reading: How images are read.
        device: Device that the images are put on.
        resize: Height and width to resize to; None takes the model's input size.
    """
    if not len(rows):
        return
    sampler = SequentialSampler(view, batch=min(reading.batch, len(rows)), rows=rows)
    # Seed and stage are keys of the augmentation, and there is none.
    work = Work(sampler, spec, Augment(), seed=0, stage="", start=0, stop=len(sampler), read=resize)
    loader = open_loader(work, loader=reading.loader, device=device, threads=reading.threads)
    try:
        yield from loader
    finally:
        loader.close()
