"""What the frameworks cost: a step of the stage loop against a bare PyTorch loop over the same batches and model.

    python tests/benchmarks/bench_step.py [--steps 20] [--rounds 5]

One process, MobileNetV2 at 128×64, P = 18, K = 4, images decoded by DALI in both. The two take turns in one run; what
counts is the ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

# As `embae train` sets it for its ranks; before torch allocates.
if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    import sys

    limits = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**32 - 1))
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **limits})

import timm
import torch
import torch.nn.functional as F
from torch import nn

from embae.datasets.loading.open_loader import open_loader
from embae.datasets.readers.read import read_records
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards
from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.recipe.load import check_recipe
from embae.trainer.runs.stage_data import open_sampler
from embae.trainer.runtime.distributed import join, leave
from embae.trainer.runtime.signals import StopSignals
from embae.trainer.training.stage import StageRun

STAGE = {
    "init": "random", "epochs": 1000, "loss": {"triplet": {}},
    "parts": {"backbone": "train", "embedding": "train", "nuisance": "absent", "decoder": "absent"},
    "data": {"from": "sources", "P": 18, "K": 4, "augment": {"flip": True}},
}


class Bare:
    """The loop one would write without any of this."""

    def __init__(self, stage: StageRun):
        backbone = timm.create_model("mobilenetv2_100", num_classes=0)
        head = nn.Sequential(nn.Linear(1280, 1024), nn.ReLU(), nn.BatchNorm1d(1024), nn.Linear(1024, 128))
        self.model = nn.Sequential(backbone, head).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-4)
        self.loader = open_loader(stage.work(0), loader="dali", device=torch.device("cpu"))
        self.identity = torch.arange(18).repeat_interleave(4)

    def __iter__(self):  # type: ignore[no-untyped-def]
        for batch in self.loader:
            z = self.model(batch.inputs)
            distance = torch.cdist(z, z)
            same = self.identity[:, None] == self.identity[None, :]
            d_ap = distance.masked_fill(~same, 0).max(1).values
            d_an = distance.masked_fill(same, torch.inf).min(1).values
            loss = F.softplus(d_ap - d_an).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield loss


def main() -> None:
    """Prints seconds a step of both, and their ratio."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=20, help="steps a round")
    arguments.add_argument("--rounds", type=int, default=5)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_shards(
            "plaza",
            read_records("synthetic", None, {"domain": "plaza"}),
            shards,
            source={},
            options=ShardOptions(size=(128, 64)),
        )
        data = {"root": str(shards), "sources": ["plaza"], "target": "plaza", "image": [128, 64]}
        recipe = check_recipe({"name": "bench", "model": {"backbone": "mobilenetv2_100"}, "data": data,
                               "run": ["embedding"], "stages": {"embedding": STAGE}}, "bench")
        world = join()
        run = Path(folder) / "run"
        context = RunContext(recipe, run, world, Monitor.open(run, first=True), StopSignals())
        stage = StageRun(context, "embedding", open_sampler(recipe, "embedding"))
        loops = {"bare": iter(Bare(stage)), "embae": stage.train()}
        wall: dict[str, list[float]] = {name: [] for name in loops}
        cpu: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(chosen.rounds + 1):
            for name, loop in loops.items():
                started = time.perf_counter(), time.process_time()
                for _ in range(chosen.steps):
                    next(loop)
                if turn:  # the first round warms up
                    wall[name].append((time.perf_counter() - started[0]) / chosen.steps)
                    cpu[name].append((time.process_time() - started[1]) / chosen.steps)
        leave()
    for kind, seconds in (("wall", wall), ("CPU", cpu)):
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        ratio = statistics.median(e / b for e, b in zip(seconds["embae"], seconds["bare"], strict=True))
        print(f"{kind} time a step: bare {middle['bare']:.3f} s, embae {middle['embae']:.3f} s, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
