"""Downloads remote shards before their images are read: the plan of batches is known in advance."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import replace

import numpy as np

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.loading.batch import Work
from embae.datasets.remote.url import Url

DOWNLOADS = 4  # at the same time: a store answers with a delay, and the speed of one connection is limited
BATCHES = 1000  # to look ahead at most
FILES = 256  # open at most: a process may often have only 1,024 open files
SHARE = 0.5  # of the cache for later batches, over all ranks of the node


class Prefetch:
    """Walks through the batches of a rank ahead of its loader, and opens the shards that they will read.

    An open shard stays in the cache. The walk looks ahead as far as its share of the cache and `FILES` allow, and at
    least one batch. Shards that cannot be downloaded or are too many are left to the loader, which reports errors.

    Args:
        work: The rank's batches.
    """

    def __init__(self, work: Work):
        # A copy of the sampler: it may be passes ahead of the loader, and a sampler caches only neighbouring passes.
        self._work, self._view = replace(work, sampler=copy(work.sampler)), work.sampler.view
        self._starts = np.cumsum([0, *(len(index.shards) for index in self._view.indexes)])
        caches = [index.root.cache for index in self._view.indexes if isinstance(index.root, Url)]
        node_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._max_bytes = min(cache.max_bytes for cache in caches) * SHARE / node_ranks
        self._open: dict[int, Future[int | None]] = {}  # by shard, numbered over all datasets
        self._last_batch: dict[int, int] = {}  # shard → the last batch that reads it, of the batches seen so far
        self._position, self._closed, self._changed = 0, False, threading.Condition()
        self._pool = ThreadPoolExecutor(DOWNLOADS, "download")
        self._thread = threading.Thread(target=self._walk, name="prefetch", daemon=True)
        self._thread.start()

    def advance_to(self, number: int) -> None:
        """Tells that the loader now reads a batch; shards that only earlier batches read are closed."""
        with self._changed:
            self._position = number
            past = [self._open.pop(shard) for shard, last in list(self._last_batch.items())
                    if last < number and self._last_batch.pop(shard) == last]
            self._changed.notify()
        for future in past:
            _close(future)

    def _walk(self) -> None:
        for number in range(len(self._work)):
            shards = [shard for shard in np.unique(self._view.shards(self._work.rows(number))).tolist()
                      if self._index(shard)[0].copies]
            with self._changed:
                while not (self._closed or number <= self._position + 1 or self._fits(number, shards)):
                    self._changed.wait()
                if self._closed:
                    return
                if number < self._position:
                    continue
                for shard in shards:
                    if shard not in self._open:
                        if len(self._open) == FILES:
                            continue
                        self._open[shard] = self._pool.submit(self._download, shard)
                    self._last_batch[shard] = number

    def _fits(self, number: int, shards: list[int]) -> bool:
        needed = {*self._open, *shards}
        total_bytes = sum(index.shard_bytes(local) for index, local in map(self._index, needed))
        return number < self._position + BATCHES and len(needed) <= FILES and total_bytes <= self._max_bytes

    def _index(self, shard: int) -> tuple[Index, int]:
        number = int(np.searchsorted(self._starts, shard, side="right")) - 1
        return self._view.indexes[number], shard - int(self._starts[number])

    def _download(self, shard: int) -> int | None:
        index, local = self._index(shard)
        try:
            return index.open_shard(local)
        except (DataError, OSError):
            return None

    def close(self) -> None:
        """Ends the walk and closes its shards, after downloads in progress."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        for future in self._open.values():
            _close(future)
        self._open.clear()


def _close(future: Future[int | None]) -> None:
    """Closes a shard, once its download has ended."""
    def close_descriptor(download: Future[int | None]) -> None:
        if not download.cancelled() and (descriptor := download.result()) is not None:
            os.close(descriptor)

    if not future.cancel():
        future.add_done_callback(close_descriptor)
