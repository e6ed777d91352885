"""The lock of a run folder, so that only one process at a time works in it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO

from embae.datasets.console.progress import note
from embae.datasets.files.locks import try_lock
from embae.trainer.errors import RecipeError


def lock_folder(run: Path, wait_s: float = 15) -> IO[str]:
    """Locks the run folder until the returned file is closed or the process ends.

    Workers of a killed launcher end a moment after it, so a new start waits for them briefly.

    Raises:
        RecipeError: Another process still has the lock after `wait_s` seconds.
    """
    run.mkdir(parents=True, exist_ok=True)
    file = (run / ".lock").open("a+")
    deadline, has_waited = time.monotonic() + wait_s, False
    while not _try_lock(file):
        file.seek(0)
        holder = file.read().strip() or "another process"
        if time.monotonic() > deadline:
            file.close()
            raise RecipeError(f"{run}: {holder} is running in this folder; wait until it ends, or choose another "
                              "folder with --out")
        if not has_waited:
            note(f"{run}: waiting for {holder} to end, {wait_s:.0f} s at most")
            has_waited = True
        time.sleep(0.1)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file


def _try_lock(file: IO[str]) -> bool:
    try:
        return try_lock(file.fileno())
    except OSError:
        return False  # a file system without locks: as if another process had the lock
