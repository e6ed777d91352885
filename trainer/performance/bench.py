"""Measures a stage's steps on this machine and these data: loader, model, exchanges, whole step.

What is measured is training's own code: the stage's loader, engines and loop. Weights are drawn at random, since speed
does not depend on them, so nothing has to be trained before, and nothing is written outside of a temporary folder.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from embae.datasets.loading.batch import Batch, Work
from embae.datasets.sampling.keyed_random import generator
from embae.datasets.sampling.pk_sampler import PKSampler
from embae.datasets.sampling.shuffled_sampler import ShuffledSampler
from embae.trainer.inference.features import FeatureLoader, Features
from embae.trainer.losses.term import TermState
from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.performance.bench_report import Bench, Exchanges, Timing
from embae.trainer.performance.exchanges import Recorder, bytes_sent
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runtime.distributed import World, gather_objects
from embae.trainer.runtime.signals import StopSignals
from embae.trainer.training.stage import StageRun

WARM_UP = 5  # steps before each measurement: more than loaders decode ahead
FOREVER = 10**9  # steps
STORED = 2**13  # images whose features are made up at most; those of more images are read from the same places


def with_fresh_weights(recipe: Recipe, name: str) -> Recipe:
    """A recipe whose stage starts from random weights, never ends, and neither scores nor saves."""
    stage = recipe.stages[name]
    assert stage.loss is not None  # the command's promise
    update = {"init": "random", "reinit": [], "steps": FOREVER, "evaluate_every": None, "loss": stage.loss.steady()}
    return recipe.model_copy(update={
        "stages": {**recipe.stages, name: stage.model_copy(update=update)},
        "checkpoints": recipe.checkpoints.model_copy(update={"every": FOREVER})})


def bench(recipe: Recipe, name: str, sampler: PKSampler | ShuffledSampler, world: World, folder: Path,
          steps: int) -> Bench:
    """Measures a stage; every rank must call it, and all return the same.

    Args:
        recipe: Checked.
        name: A stage that trains.
        sampler: Its batch plan.
        world: This rank.
        folder: A temporary one.
        steps: Steps of each measurement, after some to warm up.
    """
    recipe = with_fresh_weights(recipe, name)
    context = RunContext(recipe, folder, world, Monitor.open(folder, first=False), StopSignals())
    stage = _Measured(context, name, sampler)
    clock, seconds = _Clock(world), {}
    batches, accumulate = iter(stage.loader), stage.keys.accumulate
    parts: list[Batch] = []

    def load() -> None:
        parts[:] = [next(batches) for _ in range(accumulate)]

    seconds["loader"] = clock.time(load, steps)
    seconds["model"] = clock.time(lambda: stage.update(parts), steps)
    exchanges = record_exchanges(lambda: stage.update(parts))
    if exchanges:
        seconds["exchanges"] = clock.time(lambda: replay_exchanges(exchanges), steps)
    trained: Any = stage.train()  # a generator
    seconds["step"] = clock.time(lambda: next(trained), steps)
    trained.close()
    # Last: from here on the device is waited for after each phase.
    stage.time_phases(clock.phase)
    clock.time(lambda: stage.update(parts), steps)
    seconds |= clock.phases(steps)
    stage.close()
    threads = recipe.data.threads or max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    work = stage.work(0)
    return Bench(recipe=recipe.name, stage=name, ranks=world.world_size, device=world.device.type, batch=sampler.batch,
                 steps=steps, loader=stage.loader.name, precision=stage.keys.precision, threads=threads,
                 resize=None if stage.cached or work.stored_at_read_size else work.read_size,
                 sent=Exchanges(len(exchanges), sum(map(bytes_sent, exchanges))),
                 seconds={part: Timing.of(values) for part, values in seconds.items()})


class _Measured(StageRun):
    """A stage with random features in place of cached ones: as many, of the same width, in one file."""

    def _features(self, work: Work) -> tuple[FeatureLoader, float]:
        images = len(self.sampler.view)
        shape = min(images, STORED), 2, self.model.features
        path = self.run / f"features-{self.world.rank}.npy"
        stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        stored[:] = generator(self.recipe.seed, self.name, "features").random(shape, dtype=np.float32)
        if self.keys.loss and self.keys.loss.needs_feature_scale:
            zeros = torch.zeros(shape[2], device=self.world.device)
            self._standard = zeros, torch.ones_like(zeros)
        features = Features(np.load(path, mmap_mode="r"), np.arange(images) % shape[0])
        return FeatureLoader(work, features, self.world.device), 0.0

    def _start_states(self, states: Collection[TermState]) -> None:
        """They stay zeros: there may be many images."""

    def update(self, parts: Sequence[Batch]) -> None:
        """The updates of a step, on a batch that has been loaded."""
        self.updates.step(parts, self.keys.optimizer.lr)


class _Clock:
    """Seconds per step of the slowest rank, for which the others wait."""

    def __init__(self, world: World):
        self._gpu = world.device.type == "cuda"
        self._phases: dict[str, list[float]] = defaultdict(list)

    def time(self, act: Callable[[], Any], steps: int) -> list[float]:
        """Wall time of each of some steps, after warm-up steps."""
        dist.barrier()
        durations = []
        for _ in range(WARM_UP + steps):
            began = self._now()
            act()
            durations.append(self._now() - began)
            for times in self._phases.values():
                times.append(0.0)
        return _slowest(durations[WARM_UP:])

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent within it to a phase of the current step."""
        began = self._now()
        yield
        if name not in self._phases:
            self._phases[name] = [0.0]
        self._phases[name][-1] += self._now() - began

    def phases(self, steps: int) -> dict[str, list[float]]:
        """Seconds per step of each phase, over the last timed steps."""
        return {name: _slowest(times[:-1][-steps:]) for name, times in self._phases.items()}

    def _now(self) -> float:
        if self._gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def _slowest(seconds: list[float]) -> list[float]:
    return np.max(gather_objects(seconds), axis=0).tolist()


def record_exchanges(step: Callable[[], None]) -> list[tuple[Any, Any, Any]]:
    """The exchanges of a step; none on a single rank."""
    if dist.get_world_size() == 1:
        return []
    with Recorder() as recorder:
        step()
    return recorder.calls


def replay_exchanges(calls: Sequence[tuple[Any, Any, Any]]) -> None:
    """Repeats the exchanges of a step one after the other, with nothing between them."""
    for func, args, kwargs in calls:
        work = func(*args, **kwargs)
        (work[-1] if isinstance(work, tuple) else work).wait()
