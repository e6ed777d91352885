"""Adaptation from cached features: how long the stages after the embedding take, and where a step's time goes.

    python tests/benchmarks/bench_adaptation.py [--ranks 1] [--steps 40] [--precision fp32]

The sizes of the paper (features 1024, hidden 1024, z and v 128, batch 256, Adam), a target of 13,000 images with 6
cameras and three sources of 4,300 with 2, 4 and 6. Features are made up and extraction is left out; recipes, stages,
loader and engine are the real ones. Prints, in seconds of wall time and of CPU time (one rank's, all its threads):

* every stage that `embae compare` would train for the five EmbAE variants, as it shares them: 15 epochs reckoned from
  the steps measured, and the time that it takes to open and to export, as it was; then the three stages of EmbAE-cam
  and all of them together;
* a step of the heads' stage by its parts, with 1, 6 and 64 cameras, the three taking turns.

Where others use the cores, two threads spin while they wait for each other, and take ten times as long: --threads 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# As `embae train` sets it for its ranks; before torch allocates.
if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    limits = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**32 - 1))
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **limits})

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from embae.datasets.index.columns import Columns
from embae.datasets.index.writer import write_index
from embae.trainer.inference.features import Cached
from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.recipe.load import load_recipe
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.stage_data import open_sampler
from embae.trainer.runs.stage_key import stage_keys
from embae.trainer.runtime.distributed import World, join, leave
from embae.trainer.runtime.signals import StopSignals
from embae.trainer.training import stage as stages

EPOCHS = 15
VARIANTS = ("embae", "embae-fix", "embae-new", "embae-dataset", "embae-cam")
SOURCES, TARGET = {"a": (4300, 2), "b": (4300, 4), "c": (4300, 6)}, {"target": (13_000, 6)}
CAMERAS = {f"cameras{number}": (13_000, number) for number in (1, 6, 64)}


def write(folder: Path, name: str, images: int, cameras: int) -> None:
    """An index of that many training images; its only shard is a hole."""
    rng, row = np.random.default_rng(len(name)), np.arange(images)
    pid, camid = row // 10, rng.integers(0, cameras, images).astype(np.int32)
    (folder / name).mkdir()
    with (folder / name / "train-000000.tar").open("wb") as file:
        file.truncate(images * 100)
    write_index(folder / name, name, Columns(
        keys=pc.utf8_lpad(pa.array(row).cast(pa.string()), 8, "0"), split=np.zeros(images, np.int8), pid=pid,
        labelled=np.ones(images, np.bool_), camid=camid[np.lexsort((camid, pid))],
        role=np.zeros(images, np.int8), shard=np.zeros(images, np.int32), offset=row * 100,
        size=np.full(images, 100, np.int32), crc32=rng.integers(0, 2**32, images, dtype=np.uint32),
        height=np.full(images, 256, np.int32), width=np.full(images, 128, np.int32), shards=["train-000000.tar"]),
        source={})


class Spans:
    """Seconds of wall and CPU time spent in functions, each call's by the function's name."""

    def __init__(self) -> None:
        self.seconds: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))

    def timed(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time kept."""
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before = now()
            try:
                return act(*args, **kwargs)
            finally:
                self.seconds[name] += now() - before
        return wrapped


def now() -> np.ndarray:
    """Wall and CPU clock."""
    return np.array([time.perf_counter(), time.process_time()])


class Bench:
    """Opens stages in a folder with made-up data.

    Args:
        folder: Where shards and runs lie; the ranks share it.
        world: This rank.
        precision: Of every stage.
    """

    def __init__(self, folder: Path, world: World, precision: str):
        self.folder, self.world, self.precision = folder, world, precision
        features = np.load(folder / "features.npy", mmap_mode="r")
        # What extraction would have left behind.
        stages.cached_features = lambda *_, **__: Cached(features, 0.0)  # type: ignore[attr-defined]

    def recipe(self, name: str, *more: str, target: str = "target") -> Recipe:
        """A shipped recipe over the made-up data."""
        return load_recipe(name, [f"data.root={self.folder}/shards", f"data.sources=[{','.join(SOURCES)}]",
                           f"data.target={target}", f"defaults.precision={self.precision}", *more])

    def open(self, name: str, stage: str, target: str = "target") -> stages.StageRun:
        """A stage of a recipe by itself, from random weights."""
        alone = self.recipe(name, f"run=[{stage}]", f"stages.{stage}.init=random", f"stages.{stage}.reinit=[]",
                            f"stages.{stage}.epochs={EPOCHS}", "evaluate=null", target=target)
        run = self.folder / "runs" / f"{name}-{stage}-{target}"
        if self.world.first:
            run.mkdir(parents=True)
        torch.distributed.barrier()
        context = RunContext(alone, run, self.world, Monitor.open(run, first=self.world.first), StopSignals())
        return stages.StageRun(context, stage, open_sampler(alone, stage))

    def say(self, text: str) -> None:
        """From the first rank."""
        if self.world.first:
            print(text, flush=True)


def median_step(loop: Iterator[int], count: int) -> np.ndarray:
    """Wall and CPU seconds of the middle one of some steps."""
    clock = [now()]
    for _ in range(count):
        next(loop)
        clock.append(now())
    return np.median(np.diff(clock, axis=0), axis=0)


def all_stages(bench: Bench, steps: int) -> None:
    """Prints what each stage of the five variants takes, none twice."""
    seen: set[str] = set()
    total, own = np.zeros(2), np.zeros(2)
    for name in VARIANTS:
        for stage, key in stage_keys(bench.recipe(name)).items():
            if stage == "embedding" or key in seen:
                continue
            seen.add(key)
            before = now()
            opened = bench.open(name, stage)
            around, loop = now() - before, opened.train()
            median_step(loop, 5)
            step = median_step(loop, steps)
            before = now()
            opened.export()
            opened.close()
            around += now() - before
            took = opened.stop * step + around
            total, own = total + took, own + (took if name == "embae-cam" else 0)
            heads = len(opened.model.heads)
            batch = opened.sampler.batch
            bench.say(f"{name:14} {stage:17} {heads:2} heads, {opened.stop} steps: {took[0]:5.0f} s "
                      f"({took[1]:5.0f} CPU), {batch / step[0]:6.0f} images/s; a step {1000 * step[0]:4.0f} ms "
                      f"({1000 * step[1]:4.0f} CPU), around it {around[0]:.1f} s")
    bench.say(f"the three stages of embae-cam: {own[0]:.0f} s ({own[1]:.0f} CPU)\n"
              f"all {len(seen)} stages of the five variants: {total[0]:.0f} s ({total[1]:.0f} CPU)")


def by_part(bench: Bench, steps: int) -> None:
    """Prints where a step's time goes, by number of cameras, and what many cost against one."""
    opened = {name: bench.open("embae-cam", "target-nuisance", name) for name in CAMERAS}
    spans = {name: Spans() for name in CAMERAS}
    for name, stage in opened.items():
        kept, engine = spans[name], stage.updates.engine
        stage.loader.__class__ = type("Timed", (type(stage.loader),), {"__iter__": _timed_batches(kept)})
        engine.module.forward = kept.timed("forward", engine.module.forward)  # type: ignore[method-assign]
        inner = engine.optimizer
        inner.step = kept.timed("optimizer", inner.step)
        engine.wrapped.backward = kept.timed("backward", engine.wrapped.backward)
        engine.wrapped.allreduce_gradients = kept.timed("exchange", engine.wrapped.allreduce_gradients)
    loops = {name: stage.train() for name, stage in opened.items()}
    rounds: dict[str, list[np.ndarray]] = {name: [] for name in opened}
    each = max(1, steps // 5)
    for turn in range(6):
        for name, loop in loops.items():
            if not turn:  # the first round warms up
                median_step(loop, 3)
                spans[name].seconds.clear()
                continue
            before = now()
            for _ in range(each):
                next(loop)
            rounds[name].append((now() - before) / each)
    for name, (_, cameras) in CAMERAS.items():
        whole = np.mean(rounds[name], axis=0)
        parts = {part: 1000 * seconds / (5 * each) for part, seconds in spans[name].seconds.items()}
        parts["backward"] = parts["backward"] - parts.get("exchange", 0)  # DeepSpeed exchanges gradients at its end
        parts["rest"] = 1000 * whole - sum(parts.values())
        bench.say(f"{cameras:2} cameras: a step {1000 * whole[0]:.1f} ms ({1000 * whole[1]:.1f} CPU): " + ", ".join(
            f"{part} {wall:.1f} ({cpu:.1f})" for part, (wall, cpu) in parts.items()))
    for cameras in (6, 64):
        pairs = list(zip(rounds[f"cameras{cameras}"], rounds["cameras1"], strict=True))
        ratio = [statistics.median(many[kind] / one[kind] for many, one in pairs) for kind in (0, 1)]
        bench.say(f"{cameras} cameras cost {ratio[0]:.2f} times a step with one ({ratio[1]:.2f} in CPU time)")
    for stage in opened.values():
        stage.close()


def _timed_batches(kept: Spans) -> Callable[..., Iterator[Any]]:
    def batches(self: Any) -> Iterator[Any]:
        source = type(self).__mro__[1].__iter__(self)  # type: ignore[attr-defined]
        take = kept.timed("loader", lambda: next(source, None))
        while (batch := take()) is not None:
            yield batch
    return batches


def main() -> None:
    """Makes the data, and measures on so many ranks."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--ranks", type=int, default=1)
    options.add_argument("--threads", type=int, default=2, help="shared by the ranks")
    options.add_argument("--steps", type=int, default=40, help="measured of each stage")
    options.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options.add_argument("--only", choices=["stages", "step"])
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a rank
    given = options.parse_args()
    torch.set_num_threads(max(1, given.threads // given.ranks))
    if given.folder:
        world = join()
        bench = Bench(given.folder, world, given.precision)
        if given.only != "step":
            all_stages(bench, given.steps)
        if given.only != "stages":
            by_part(bench, given.steps)
        leave()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "shards").mkdir()
        for name, sizes in {**SOURCES, **TARGET, **CAMERAS}.items():
            write(folder / "shards", name, *sizes)
        features = np.random.default_rng(0).standard_normal((13_000, 2, 1024), dtype=np.float32)
        np.save(folder / "features.npy", np.maximum(features, 0))  # pooled after a ReLU
        ranks = [subprocess.Popen([sys.executable, *sys.argv, "--folder", temporary], env={
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(given.ranks),
            "EMBAE_STORE": str(folder / "store")}) for rank in range(given.ranks)]
        sys.exit(max(rank.wait() for rank in ranks))


if __name__ == "__main__":
    main()
