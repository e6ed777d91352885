"""Starts a run's ranks on this machine, and ends them together."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from embae.trainer.errors import RecipeError
from embae.trainer.runtime.signals import AGAIN


def launch(arguments: Sequence[str], nproc: int) -> int:
    """Runs ``python -m embae.trainer ARGUMENTS`` in that many processes that know each other.

    They meet through a file, so no port has to be free. When one fails, the others are ended; signals are passed on.

    Returns:
        0, or the exit code of the rank that failed; 1 where a signal ended it, 75 where it was one passed on.
    """
    with tempfile.TemporaryDirectory(prefix="embae-") as folder:
        common = {**os.environ, "WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc),
                  "EMBAE_STORE": str(Path(folder) / "store")}
        # glibc gives large blocks back to the kernel at once and faults them in anew at the next step: measured, a
        # fifth of a MobileNetV2 step's time on CPU.
        common |= {key: common.get(key, str(2**32 - 1)) for key in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")}
        # Threads that wait for each other spin for milliseconds by default, and where anything else runs on the machine
        # they spin for one that has no core: measured, a step of 0.4 s took ten. A tenth slower where nothing does.
        common.setdefault("GOMP_SPINCOUNT", "5000")
        common["EMBAE_LAUNCHER"] = str(os.getpid())  # a worker that starts after this process died will know
        common.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // nproc)))
        command = [sys.executable, "-m", "embae.trainer", *arguments]
        workers = [subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                   for rank in range(nproc)]

        asked: set[int] = set()

        def pass_on(number: int, _: object) -> None:
            asked.add(number)
            for worker in workers:
                worker.send_signal(number)

        before = {number: signal.signal(number, pass_on)
                  for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        try:
            code = _wait(workers)
            # A rank that is still being imported does not listen yet: the signal itself ends it.
            unheard = any(worker.returncode is not None and -worker.returncode in asked for worker in workers)
            return AGAIN if unheard else code
        finally:
            _end(workers)
            for number, handler in before.items():
                signal.signal(number, handler)


def _wait(workers: Sequence[subprocess.Popen[bytes]], settle_s: float = 2, finish_s: float = 25) -> int:
    ending = math.inf
    while True:
        codes = [worker.poll() for worker in workers]
        failed = [code for code in codes if code]
        if failed and (None not in codes or time.monotonic() > ending):
            for rank, code in enumerate(codes):
                if code is not None and code < 0:
                    name = signal.Signals(-code).name
                    print(f"embae: rank {rank} was ended by {name}; the same command goes on from the last checkpoint",
                          file=sys.stderr, flush=True)
            # Ranks that waited for one that failed fail for that reason, with 1, perhaps before that one has ended: the
            # reason itself is the code that says more.
            return max(*failed, 1)
        if failed:  # where they were asked to stop, one may still be writing the checkpoint
            ending = min(ending, time.monotonic() + (finish_s if AGAIN in failed else settle_s))
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


def _end(workers: Sequence[subprocess.Popen[bytes]], grace_s: float = 10) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    deadline = time.monotonic() + grace_s
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def ranks_here(nproc: int | None) -> int:
    """Ranks to start on this machine: as many as asked for, or one a GPU, or one.

    Raises:
        RecipeError: More than there are GPUs.
    """
    there = gpus()
    ranks = nproc or there or 1
    if there and ranks > there:
        raise RecipeError(f"--nproc {ranks}: a rank needs a GPU of its own, and there are {there}")
    return ranks


def gpus() -> int:
    """GPUs that a run may use, asked of the driver's files: importing torch would take seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in os.listdir("/dev"))
