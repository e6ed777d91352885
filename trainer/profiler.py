"""A trace of a few training steps, for TensorBoard's profiler plugin or Perfetto (ui.perfetto.dev)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule, tensorboard_trace_handler

from embae.trainer.stage import StageRun

SKIP, WARM_UP, RECORD = 5, 1, 4  # steps


@contextmanager
def profiled(stage: StageRun, folder: Path) -> Iterator[Callable[[], None]]:
    """Within it steps 7 to 10 of a stage's start are recorded; later ones are not.

    Args:
        stage: Before it trains.
        folder: Where the trace goes, ``<host>_<process>.<time>.pt.trace.json``.

    Yields:
        What to call after each step.
    """
    stage.around(record_function)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities, schedule=schedule(wait=SKIP, warmup=WARM_UP, active=RECORD, repeat=1),
                 on_trace_ready=tensorboard_trace_handler(str(folder))) as recorder:
        yield recorder.step
