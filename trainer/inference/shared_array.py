"""An array in a file that all ranks fill together, chunk by chunk; chunks of an earlier start are kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embae.datasets.files.atomic import write_text
from embae.trainer.runtime.distributed import World, barrier, broadcast_object

CHUNK = 8  # batches in a chunk, which is the most work that is lost when a rank is killed


def content_key(through: list[Any], fingerprints: np.ndarray, weights: torch.nn.Module) -> str:
    """A name for what is computed of images: by these, by weights, and by all that it went through."""
    key = hashlib.sha256(json.dumps(through).encode())
    key.update(fingerprints.tobytes())
    for name, value in sorted(weights.state_dict().items()):
        key.update(name.encode())
        key.update(value.detach().cpu().numpy().tobytes())
    return key.hexdigest()[:16]


def fill(path: Path, rows: np.ndarray, shape: tuple[int, ...],
         compute: Callable[[np.ndarray], Generator[torch.Tensor, None, None]], world: World, batch: int) -> None:
    """Fills a file, chunk by chunk over the ranks; chunks that an earlier start has computed are not computed again.

    Batches never cross chunks, whatever the world size, so that the values are the same bit for bit.

    Args:
        path: The file, on a file system that all ranks see; it exists once `finish` has been called.
        rows: `(N,)`, the images in the order of the file.
        shape: Shape of an image's values.
        compute: Given rows, yields their values batch by batch: `(B, *shape)` float32.
        world: This rank.
        batch: Images in a batch.
    """
    part, chunks = path.with_suffix(".partial"), path.with_suffix(".chunks")
    if world.first and not chunks.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(len(rows), *shape))
        chunks.mkdir()  # last: where this folder exists, the file does too
    chunk = CHUNK * batch
    missing = broadcast_object([number for number in range(-(-len(rows) // chunk))
                                if not (chunks / f"{number}").exists()] if world.first else None)
    this_rank = missing[world.rank::world.world_size]
    if this_rank:
        pieces = {number: rows[number * chunk:(number + 1) * chunk] for number in this_rank}
        stored = np.load(part, mmap_mode="r")
        begin, row_bytes = stored.offset, stored.strides[0]
        batches = compute(np.concatenate(list(pieces.values())))
        # Not through the memory map: on a network file system, pages that two ranks write get lost.
        with part.open("r+b", buffering=0) as file, contextlib.closing(batches):
            for number, piece in pieces.items():
                since = time.perf_counter()
                file.seek(begin + number * chunk * row_bytes)
                for _ in range(-(-len(piece) // batch)):
                    file.write(next(batches).cpu().numpy().tobytes())
                os.fsync(file.fileno())
                write_seconds(chunks / f"{number}", time.perf_counter() - since)
    barrier()


def finish(path: Path) -> None:
    """Makes a file that every rank has filled appear; called by one of them."""
    os.replace(path.with_suffix(".partial"), path)
    shutil.rmtree(path.with_suffix(".chunks"))


def write_seconds(path: Path, seconds: float) -> None:
    """Writes how many seconds a computation took: a file of one number, in text."""
    write_text(path, str(seconds))
