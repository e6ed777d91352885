"""The folder for files that a command needs only while it runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(run: Path) -> Iterator[Path]:
    """Gives a folder for temporary embeddings: the run's ``cache``, which all ranks see, if it can be written to.

    Otherwise it is a temporary folder, removed afterwards. It is next to the ranks' store, which our launcher
    removes however the ranks end.
    """
    cache = run / "cache"
    if os.access(cache if cache.exists() else run, os.W_OK):
        yield cache
        return
    store = os.environ.get("EMBAE_STORE")
    with tempfile.TemporaryDirectory(prefix="embae-", dir=Path(store).parent if store else None) as folder:
        yield Path(folder)
