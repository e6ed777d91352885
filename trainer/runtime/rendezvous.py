"""The store in which the ranks of one start meet."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous


def meet(rank: int, size: int, timeout_s: float) -> dist.Store:
    """Opens the store of this start of the ranks, from the launcher's environment variables.

    Raises:
        DistError, TimeoutError: The other ranks did not join within the time-out.
    """
    wait = timedelta(seconds=timeout_s)
    if path := os.environ.get("EMBAE_STORE"):  # our own launcher needs no port
        return dist.FileStore(path, size)
    if size == 1:
        return dist.HashStore()
    store, _, _ = next(rendezvous("env://", rank, size, timeout=wait))
    store.set_timeout(wait)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return agree_on_store(store, rank, size, timeout_s)
    return store


def agree_on_store(store: dist.Store, rank: int, size: int, timeout_s: float) -> dist.Store:
    """A part of a store that only this start of the ranks uses.

    With torchrun's --max-restarts all starts of the workers share the agent's store, which still has the addresses of
    workers that died, and no variable distinguishes the starts on every node. So the ranks agree on a new name: each
    rank writes a token, and the first rank publishes the list of tokens until every rank has found its own in it.

    Raises:
        TimeoutError: Some ranks did not join.
    """
    token, end = uuid.uuid4().hex, time.monotonic() + timeout_s
    store.set(f"embae/token/{rank}", token)
    published = ""
    while time.monotonic() < end:
        if rank == 0 and all(store.check([f"embae/token/{other}"]) for other in range(size)):
            tokens = json.dumps([store.get(f"embae/token/{other}").decode() for other in range(size)])
            if tokens != published:  # one token was that of a dead worker, and its successor has written another
                store.set("embae/tokens", published := tokens)
        if store.check(["embae/tokens"]):
            text = store.get("embae/tokens").decode()
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            tokens = json.loads(text)
            if len(tokens) == size and tokens[rank] == token:
                store.set(f"embae/{name}/{rank}", "")
                if store.check([f"embae/{name}/{other}" for other in range(size)]):
                    return dist.PrefixStore(f"embae/{name}", store)
        time.sleep(0.05)
    raise TimeoutError(f"the ranks did not agree on a start within {timeout_s:.0f} s")
