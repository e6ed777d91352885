"""Opens the loader that a recipe chooses."""

from __future__ import annotations

import os
from typing import Literal

import torch

from embae.datasets.errors import DataError
from embae.datasets.loading.batch import Loader, Work

LoaderName = Literal["dali", "webdataset"]


def open_loader(work: Work, *, loader: LoaderName, device: torch.device, threads: int | None = None) -> Loader:
    """Opens a loader for the batches of one rank.

    Args:
        work: The batches.
        loader: ``dali``, or ``webdataset`` for systems without a DALI wheel; never chosen automatically.
        device: The training device.
        threads: Decoding threads; by default this rank's share of the cores that the process may use.

    Raises:
        DataError: The loader is DALI, but DALI is not installed.
    """
    threads = threads or max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if loader == "dali":
        try:
            from embae.datasets.loading.dali_loader import DaliLoader
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("nvidia"):
                raise
            raise DataError("data.loader is dali, but NVIDIA DALI is not installed. Install nvidia-dali-cuda130 "
                            "(CUDA 12: nvidia-dali-cuda120), or use the slower loader with data.loader=webdataset."
                            ) from error
        return DaliLoader(work, device=device, threads=threads)
    from embae.datasets.loading.webdataset_loader import WebDatasetLoader
    return WebDatasetLoader(work, device=device, threads=threads)
