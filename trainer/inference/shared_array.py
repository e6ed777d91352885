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
from embae.datasets.loading.batch import Batch
from embae.trainer.inference.batches import EXTRACT
from embae.trainer.runtime.distributed import World, barrier, broadcast_object

CHUNK = 8 * EXTRACT  # images whose features are lost at most where a rank is killed


def content_key(through: list[Any], fingerprints: np.ndarray, weights: torch.nn.Module) -> str:
    """A name for what is computed of images: by these, by weights, and by all that it went through."""
    key = hashlib.sha256(json.dumps(through).encode())
    key.update(fingerprints.tobytes())
    for name, value in sorted(weights.state_dict().items()):
        key.update(name.encode())
        key.update(value.detach().cpu().numpy().tobytes())
    return key.hexdigest()[:16]


def fill(path: Path, rows: np.ndarray, shape: tuple[int, ...], batches: Callable[..., Generator[Batch, None, None]],
         compute: Callable[[Batch], torch.Tensor], world: World, *, size: int = EXTRACT) -> None:
    """Fills a file, chunk by chunk over the ranks; chunks that an earlier start has computed are kept.

    Batches are those of a chunk whatever the world size, so that what is computed is the same to the last bit.

    Args:
        path: The file, on a file system that all ranks see; it is there once `finish` has been called.
        rows: `(N,)`, the images in the order of the file.
        shape: Of what is computed of an image.
        batches: Given `rows` and `size`, batches of them.
        compute: Given a batch, `(B, *shape)` float32.
        world: This rank.
        size: Images at a time.
    """
    part, chunks = path.with_suffix(".partial"), path.with_suffix(".chunks")
    if world.first and not chunks.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(len(rows), *shape))
        chunks.mkdir()  # last: where it is, the file is there
    chunk = CHUNK // EXTRACT * size
    missing = broadcast_object([number for number in range(-(-len(rows) // chunk))
                                if not (chunks / f"{number}").exists()] if world.first else None)
    own = missing[world.rank::world.world_size]
    if own:
        pieces = {number: rows[number * chunk:(number + 1) * chunk] for number in own}
        out = np.load(part, mmap_mode="r")
        begin, row_bytes = out.offset, out.strides[0]
        read = batches(rows=np.concatenate(list(pieces.values())), size=size)
        # Not through the memory map: on a network file system, pages that two ranks write get lost.
        with part.open("r+b", buffering=0) as file, contextlib.closing(read):
            for number, piece in pieces.items():
                since = time.perf_counter()
                file.seek(begin + number * chunk * row_bytes)
                for _ in range(-(-len(piece) // size)):
                    with torch.inference_mode():
                        file.write(compute(next(read)).cpu().numpy().tobytes())
                os.fsync(file.fileno())
                _write_seconds(chunks / f"{number}", time.perf_counter() - since)
    barrier()


def finish(path: Path) -> None:
    """Makes a file that every rank has filled appear; called by one of them."""
    os.replace(path.with_suffix(".partial"), path)
    shutil.rmtree(path.with_suffix(".chunks"))


def _write_seconds(path: Path, seconds: float) -> None:
    write_text(path, str(seconds))
