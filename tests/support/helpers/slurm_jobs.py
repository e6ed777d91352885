"""A run that is long enough to be stopped in its middle, as a job."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from helpers import tiny_run
from helpers.network import until
from helpers.slurm_cluster import Cluster

STEPS, EVERY = 120, 20
RECIPE = tiny_run.tree(
    run=["embedding"],
    evaluate={"Baseline": "embedding"},
    data__loader="webdataset",
    stages__embedding__epochs=None,
    stages__embedding__steps=STEPS,
    stages__embedding__log_every=5,
)
WORDS = ("my recipe.yaml", f"checkpoints.every={EVERY}")
TRAIN, SHARD = (str(resources.files("embae.slurm") / f"{name}.sbatch") for name in ("train", "shard"))


@dataclass(frozen=True)
class Desk:
    """A user's folder."""

    folder: Path

    def weights(self, run: str) -> bytes:
        """What a run has exported."""
        return (self.folder / run / "embedding" / "export" / "model.safetensors").read_bytes()

    def step(self, run: str) -> int:
        """The newest step that a run has recorded."""
        path = self.folder / run / "metrics.jsonl"
        if not path.exists():
            return 0
        lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return max((line["step"] for line in lines if line["kind"] == "train"), default=0)

    def reach(self, run: str, step: int) -> None:
        """Waits until a run has come that far."""
        until(lambda: self.step(run) >= step, 120, lambda: f"step {step} of {run}, which is at {self.step(run)}")

    def send(self, cluster: Cluster, run: str, *options: str, words: Sequence[str] = (), **env: str) -> str:
        """Sends the recipe by the shipped script, on two nodes with a rank each."""
        return cluster.submit("--nodes=2", *options, TRAIN, *WORDS, *words, cwd=self.folder,
                              EMBAE_PYTHON=sys.executable, EMBAE_OUT=run, **env)

    def log(self, job: str, name: str = "embae") -> str:
        """What a job has printed, in all its starts."""
        return (self.folder / f"{name}-{job}.log").read_text()
