"""Where files lie that a command needs only while it runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def meanwhile(run: Path) -> Iterator[Path]:
    """Where embeddings lie: beside the models, which all ranks see, unless that may not be written to."""
    beside = run / "cache"
    if os.access(beside if beside.exists() else run, os.W_OK):
        yield beside
        return
    store = os.environ.get("EMBAE_STORE")  # our launcher removes its folder, whatever becomes of the ranks
    with tempfile.TemporaryDirectory(prefix="embae-", dir=Path(store).parent if store else None) as folder:
        yield Path(folder)
