"""Ranks of one start find each other in a store that still holds what ranks before them wrote."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from embae.trainer.runtime.rendezvous import agree_on_store


def together(store: dist.Store, size: int, late: dict[int, float] | None = None) -> list[dist.Store]:
    """What each of these ranks gets."""
    found: dict[int, Any] = {}

    def act(rank: int) -> None:
        time.sleep((late or {}).get(rank, 0))
        try:
            found[rank] = agree_on_store(store, rank, size, 10)
        except TimeoutError as error:
            found[rank] = error

    threads = [threading.Thread(target=act, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for value in found.values():
        if isinstance(value, Exception):
            raise value
    return [found[rank] for rank in range(size)]


def share_a_place(stores: list[dist.Store]) -> bool:
    """Whether what one writes all others read, and none reads what an earlier start wrote."""
    if any(store.check(["address"]) for store in stores):
        return False
    stores[0].set("address", "here")
    return all(store.get("address") == b"here" for store in stores)


@pytest.fixture
def store() -> dist.Store:
    found = dist.HashStore()
    found.set_timeout(timedelta(seconds=5))
    return found


def test_every_start_has_a_place_of_its_own(store: dist.Store) -> None:
    for size in (3, 3, 2, 4):  # nodes come and go
        assert share_a_place(together(store, size))


@pytest.mark.parametrize("late", [{0: 0.3}, {2: 0.3}, {0: 0.2, 1: 0.4}])
def test_the_order_of_coming_does_not_matter(store: dist.Store, late: dict[int, float]) -> None:
    together(store, 3)
    assert share_a_place(together(store, 3, late))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_died_on_the_way_is_not_waited_for(store: dist.Store, rank: int) -> None:
    """It has handed its token in, and the first rank may have published it."""
    store.set(f"embae/token/{rank}", "of one that is dead")
    assert share_a_place(together(store, 2, {rank: 0.5}))


def test_ranks_that_do_not_come(store: dist.Store) -> None:
    with pytest.raises(TimeoutError, match="did not agree on a start within 1 s"):
        agree_on_store(store, 0, 2, 1)
