"""A perceptual hash: 256 bits that stay nearly the same when an image is re-encoded or resized.

The signs of the 256 lowest frequencies of the grey image's cosine transform, as in pHash (Zauner 2010), of people twice
as high as wide. Measured on CUHK03, CUHK01 and PKU-Reid: see `duplicates.DISTANCE`.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.fft import dct

from embae.datasets.console.progress import Report, progress
from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.shard_reader import ShardReader, describe_row
from embae.datasets.sharding.writer import start_worker

BITS = 256
HEIGHT, WIDTH = 64, 32  # of the grey image that is transformed
_CHUNK = 2048  # images a task
_FLAT = 1e-3  # grey levels: below it a coefficient is rounding, whose sign means nothing

_down, _across = np.mgrid[:HEIGHT, :WIDTH]
# From low to high frequency, alike in both directions; the mean is left out.
_LOWEST = np.argsort((_down * WIDTH / HEIGHT + _across).ravel(), kind="stable")[1 : BITS + 1]
_VERTICAL, _HORIZONTAL = dct(np.eye(HEIGHT), norm="ortho", axis=0), dct(np.eye(WIDTH), norm="ortho", axis=0).T


def image_hash(data: bytes, name: str) -> np.ndarray:
    """The hash of an encoded image, `(4,)` uint64.

    Args:
        data: A JPEG of the index's size.
        name: What to call it in messages.

    Raises:
        DataError: It cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            image.draft("L", (2 * WIDTH, 2 * HEIGHT))  # decoded at a smaller scale where that leaves twice what is used
            grey = image.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: cannot be decoded ({error}); see embae inspect --verify") from error
    waves = (_VERTICAL @ np.asarray(grey, np.float64) @ _HORIZONTAL).ravel()[_LOWEST]  # a third of dctn's time
    return np.packbits(waves > _FLAT).view("<u8")


def hashes(indexes: Sequence[Index], workers: int | None = None, progress: Report = progress) -> np.ndarray:
    """The hash of every image of these datasets, one after the other: `(images, 4)` uint64.

    Args:
        indexes: The datasets.
        workers: Processes; None takes all cores this process may use.
        progress: How to report; gets the images as they are done.

    Raises:
        DataError: An image cannot be read.
    """
    tasks = [(index.root, start, min(start + _CHUNK, len(index)))
             for index in indexes for start in range(0, len(index), _CHUNK)]
    context = multiprocessing.get_context("forkserver")  # not forked from here: the parent may have threads
    context.set_forkserver_preload([__name__])
    stop, alive = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(min(workers or len(os.sched_getaffinity(0)), len(tasks)), context, start_worker,
                                   (stop, None))
    hashes = np.empty((sum(len(index) for index in indexes), BITS // 64), np.uint64)
    done = 0
    try:
        with progress("looking for near-duplicates", len(hashes)) as advance:
            for part in executor.map(_hashes, tasks):
                hashes[done : done + len(part)] = part
                done += len(part)
                advance(len(part))
    except BrokenProcessPool as error:
        raise DataError("looking for near-duplicates: a worker process was killed, perhaps for want of memory; start "
                        "again, or leave it out with --no-duplicates") from error
    finally:
        alive.close()  # ends the workers, on an error or Ctrl-C too
        executor.shutdown(cancel_futures=True)
        stop.close()
    return hashes


def _hashes(task: tuple[Path, int, int]) -> np.ndarray:
    root, start, stop = task
    reader = _reader(root)
    return np.stack([image_hash(reader.read(row), describe_row(reader.index, row)) for row in range(start, stop)])


@lru_cache(maxsize=1)
def _reader(root: Path) -> ShardReader:
    return ShardReader(Index.open(root))
