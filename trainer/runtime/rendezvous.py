"""Where the ranks of one start find each other."""

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
    """The store of this start of the ranks, as the launcher's environment variables describe it.

    Raises:
        DistError: The others did not come within the time-out.
        TimeoutError: Likewise.
    """
    wait = timedelta(seconds=timeout_s)
    if path := os.environ.get("EMBAE_STORE"):  # of our own launcher, which needs no port
        return dist.FileStore(path, size)
    if size == 1:
        return dist.HashStore()
    store, _, _ = next(rendezvous("env://", rank, size, timeout=wait))
    store.set_timeout(wait)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return this_start(store, rank, size, timeout_s)
    return store


def this_start(store: dist.Store, rank: int, size: int, timeout_s: float) -> dist.Store:
    """A part of a store that only this start of the ranks uses.

    With torchrun's --max-restarts all starts of the workers share the agent's store, where addresses of workers that
    died still stand; and no variable tells one start from another on every node. So the ranks agree on a name that is
    new: each hands in a token, and the first publishes the list until all have found their own in it.

    Raises:
        TimeoutError: They did not all come.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + timeout_s
    store.set(f"embae/token/{rank}", own)
    said = ""
    while time.monotonic() < end:
        if rank == 0 and all(store.check([f"embae/token/{other}"]) for other in range(size)):
            tokens = json.dumps([store.get(f"embae/token/{other}").decode() for other in range(size)])
            if tokens != said:  # else one was of a worker that is dead: its successor hands in another
                store.set("embae/tokens", said := tokens)
        if store.check(["embae/tokens"]):
            found = store.get("embae/tokens").decode()
            name = hashlib.sha256(found.encode()).hexdigest()[:16]
            tokens = json.loads(found)
            if len(tokens) == size and tokens[rank] == own:
                store.set(f"embae/{name}/{rank}", "")
                if store.check([f"embae/{name}/{other}" for other in range(size)]):
                    return dist.PrefixStore(f"embae/{name}", store)
        time.sleep(0.05)
    raise TimeoutError(f"the ranks did not agree on a start within {timeout_s:.0f} s")
