"""Starts the ranks of a command on this machine, and ends them together."""

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
from embae.trainer.runtime.signals import RESUMABLE

SETTLE_S, FINISH_S = 2.0, 25.0
"""How long the launcher waits for the other ranks: after a failure, and after a stop request, for the checkpoint."""
GRACE_S = 10.0
"""How long a rank may take to end before it is killed."""


def is_rank() -> bool:
    """Whether this process is a rank: our launcher, torchrun or srun started it. Otherwise it is a user's command."""
    return "RANK" in os.environ


def is_launched_by_embae() -> bool:
    """Whether our own launcher started this rank. The launcher has then checked everything beforehand."""
    return "EMBAE_STORE" in os.environ


def count_ranks(nproc: int | None) -> int:
    """Ranks to start on this machine: `nproc`, or one for each GPU, or one.

    Raises:
        RecipeError: More ranks than GPUs.
    """
    gpus = count_gpus()
    ranks = nproc or gpus or 1
    if gpus and ranks > gpus:
        raise RecipeError(f"--nproc {ranks}: each rank needs its own GPU, and this machine has {gpus}")
    return ranks


def count_gpus() -> int:
    """GPUs that a run may use, read from the driver's files: importing torch would take seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in os.listdir("/dev"))


def launch(arguments: Sequence[str], nproc: int) -> int:
    """Runs ``python -m embae.trainer ARGUMENTS`` as `nproc` ranks.

    They meet through a file, so no port has to be free. When one rank fails, the others are ended. Signals are passed
    on to all ranks.

    Returns:
        0, or the exit code of the rank that failed; 1 if a signal ended a rank, 75 if that signal was passed on to it.
    """
    with tempfile.TemporaryDirectory(prefix="embae-") as folder:
        environment = _environment(Path(folder) / "store", nproc)
        command = [sys.executable, "-m", "embae.trainer", *arguments]
        workers = [subprocess.Popen(command, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                   for rank in range(nproc)]
        passed_on: set[int] = set()

        def pass_on(number: int, _: object) -> None:
            passed_on.add(number)
            for worker in workers:
                worker.send_signal(number)

        handlers = {number: signal.signal(number, pass_on)
                    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        try:
            code = _wait(workers)
            # A rank that still imports its modules handles no signal yet: the signal itself ends it.
            ended_by_signal = any(worker.returncode is not None and -worker.returncode in passed_on
                                  for worker in workers)
            return RESUMABLE if ended_by_signal else code
        finally:
            _end(workers)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _environment(store: Path, nproc: int) -> dict[str, str]:
    environment = {**os.environ, "WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc), "EMBAE_STORE": str(store)}
    # glibc returns large blocks to the kernel at once and faults them in again at the next step: measured, a fifth of
    # the time of a MobileNetV2 step on CPU.
    for variable in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        environment.setdefault(variable, str(2**32 - 1))
    # Threads that wait for each other spin for milliseconds by default. Where anything else runs on the machine, they
    # spin for a thread that has no core: measured, a step of 0.4 s took ten. On an idle machine this costs a tenth.
    environment.setdefault("GOMP_SPINCOUNT", "5000")
    environment["EMBAE_LAUNCHER"] = str(os.getpid())  # tells a worker that starts late whether its launcher is alive
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // nproc)))
    return environment


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    deadline = math.inf
    while True:
        codes = [worker.poll() for worker in workers]
        failed = [code for code in codes if code]
        if failed and (None not in codes or time.monotonic() > deadline):
            for rank, code in enumerate(codes):
                if code is not None and code < 0:
                    print(f"embae: rank {rank} was ended by {signal.Signals(-code).name}; run the same command again "
                          "to resume from the last checkpoint", file=sys.stderr, flush=True)
            # Ranks that waited for the failed rank fail with 1 for that reason, perhaps before it has ended itself. The
            # highest code is the one that says why.
            return max(*failed, 1)
        if failed:  # after a stop request, a rank may still be writing the checkpoint
            deadline = min(deadline, time.monotonic() + (FINISH_S if RESUMABLE in failed else SETTLE_S))
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    deadline = time.monotonic() + GRACE_S
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
