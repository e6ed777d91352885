"""Functions of test modules, run on several ranks: real processes that exchange over gloo.

A test module marks what is to be run with `on_ranks`; the fixture `computed` (conftest.py) starts one launch for each
number of ranks, which serves every marked function of all collected modules, since importing torch and DeepSpeed takes
each process longer than most of the functions. A test then looks at what the ranks returned.

This file is also the program of a rank: `python -m helpers.ranks FOLDER MODULE.py:function …`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embae.trainer.runtime.fast_imports import gc_paused

with gc_paused():
    import torch

Function = Callable[..., Any]


def on_ranks(*worlds: int) -> Callable[[Function], Function]:
    """Marks a function to be run on so many ranks.

    It takes the rank's `World` and a folder that the ranks share, and returns what `torch.save` takes.
    """

    def mark(function: Function) -> Function:
        function.worlds = worlds  # type: ignore[attr-defined]
        return function

    return mark


def marked(module: Any) -> list[Function]:
    """The functions of a module that are for ranks, in the order they stand there."""
    return [value for value in vars(module).values() if hasattr(value, "worlds")]


def launch(functions: Sequence[str], world_size: int, folder: Path, timeout_s: float) -> str:
    """Runs functions on ranks; none outlives the call, nor a killed caller.

    Args:
        functions: ``MODULE.py:function``, run in this order.
        world_size: Number of ranks.
        folder: Where the ranks leave what the functions returned.
        timeout_s: When to give up on ranks that hang.

    Returns:
        What went wrong, with the last lines of every rank; empty if nothing did.
    """
    with tempfile.TemporaryDirectory(prefix="embae-ranks-") as store:
        common = {
            **os.environ,
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "EMBAE_STORE": f"{store}/store",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        logs = [folder / f"rank-{rank}.log" for rank in range(world_size)]
        workers = []
        for rank, log in enumerate(logs):
            with log.open("wb") as stream:
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "helpers.ranks", str(folder), *functions],
                        stdout=stream,
                        stderr=stream,
                        env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    )
                )
        try:
            wrong = _wait(workers, time.monotonic() + timeout_s)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    tails = [
        f"--- rank {rank} ---\n" + "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        for rank, log in enumerate(logs)
    ]
    return "\n".join([wrong, *tails]) if wrong else ""


def _wait(workers: Sequence[subprocess.Popen[bytes]], deadline: float) -> str:
    while True:
        codes = [worker.poll() for worker in workers]
        if any(codes):
            time.sleep(1)  # what the others have to say about it
            return f"exit codes {codes}"
        if all(code == 0 for code in codes):
            return ""
        if time.monotonic() > deadline:
            return "the ranks hang"
        time.sleep(0.1)


def load(path: str) -> Any:
    """A test module by its file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def result_file(folder: Path, function: str, rank: int) -> Path:
    """Where a rank leaves what a function returned."""
    path, name = function.rsplit(":", 1)
    return folder / f"{Path(path).parent.name}.{Path(path).stem}.{name}.{rank}.pt"


def main(folder: Path, functions: Sequence[str]) -> None:
    """One rank."""
    with gc_paused():
        from embae.trainer.runtime.distributed import join, leave

        modules = {path: load(path) for path in {function.rsplit(":", 1)[0] for function in functions}}
    torch.set_num_threads(1)
    world = join(timeout_s=120)
    for function in functions:
        path, name = function.rsplit(":", 1)
        started = time.perf_counter()
        print(f"test: {name} …", flush=True)
        result = getattr(modules[path], name)(world, folder)
        print(f"test: {name} {time.perf_counter() - started:.1f} s", flush=True)
        target = result_file(folder, function, world.rank)
        torch.save(result, target.with_suffix(".partial"))
        target.with_suffix(".partial").rename(target)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
