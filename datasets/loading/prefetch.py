"""Far shards fetched before their images are asked for: the plan knows them."""

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

FETCHES = 4  # at a time: a store takes its time to answer, and a connection has a speed of its own
BATCHES = 1000  # looked ahead at most
FILES = 256  # held at most, as each is an open file: a process may often have only 1,024
SHARE = 0.5  # of the cache for what is to come, over all ranks of the node


class Ahead:
    """Walks through the batches of a rank ahead of its loader, and holds the shards that these will read.

    A held shard stays in the cache. It looks as far ahead as its share of the cache and `FILES` reach, and at least one
    batch. A shard that cannot be fetched, or is one too many, is left to the loader, which says what is wrong.

    Args:
        work: The rank's batches.
    """

    def __init__(self, work: Work):
        # With a plan of its own: it may be some passes ahead of the loader's, which each would forget for the other's.
        self._work, self._view = replace(work, sampler=copy(work.sampler)), work.sampler.view
        self._starts = np.cumsum([0, *(len(index.shards) for index in self._view.indexes)])
        caches = [index.root.cache for index in self._view.indexes if isinstance(index.root, Url)]
        self._most = min(cache.max_bytes for cache in caches) * SHARE / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._held: dict[int, Future[int | None]] = {}  # shard, numbered through all datasets
        self._until: dict[int, int] = {}  # the last batch looked at that reads it
        self._at, self._closed, self._changed = 0, False, threading.Condition()
        self._pool = ThreadPoolExecutor(FETCHES, "fetch")
        self._thread = threading.Thread(target=self._walk, name="ahead", daemon=True)
        self._thread.start()

    def reached(self, number: int) -> None:
        """The loader now reads the number-th batch; what only earlier ones read may go."""
        with self._changed:
            self._at = number
            past = [self._held.pop(shard) for shard, last in list(self._until.items())
                    if last < number and self._until.pop(shard) == last]
            self._changed.notify()
        for future in past:
            _let_go(future)

    def _walk(self) -> None:
        for number in range(len(self._work)):
            shards = [shard for shard in np.unique(self._view.shards(self._work.rows(number))).tolist()
                      if self._index(shard)[0].copies]
            with self._changed:
                while not (self._closed or number <= self._at + 1 or self._fits(number, shards)):
                    self._changed.wait()
                if self._closed:
                    return
                if number < self._at:
                    continue
                for shard in shards:
                    if shard not in self._held:
                        if len(self._held) == FILES:
                            continue
                        self._held[shard] = self._pool.submit(self._fetch, shard)
                    self._until[shard] = number

    def _fits(self, number: int, shards: list[int]) -> bool:
        wanted = {*self._held, *shards}
        length = sum(index.shard_bytes(local) for index, local in map(self._index, wanted))
        return number < self._at + BATCHES and len(wanted) <= FILES and length <= self._most

    def _index(self, shard: int) -> tuple[Index, int]:
        number = int(np.searchsorted(self._starts, shard, side="right")) - 1
        return self._view.indexes[number], shard - int(self._starts[number])

    def _fetch(self, shard: int) -> int | None:
        index, local = self._index(shard)
        try:
            return index.open_shard(local)
        except (DataError, OSError):
            return None

    def close(self) -> None:
        """Ends the walk and lets go of what it holds, after fetches that are under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        for future in self._held.values():
            _let_go(future)
        self._held.clear()


def _let_go(future: Future[int | None]) -> None:
    """Closes what was or will be fetched."""
    def close(done: Future[int | None]) -> None:
        if not done.cancelled() and (descriptor := done.result()) is not None:
            os.close(descriptor)

    if not future.cancel():
        future.add_done_callback(close)
