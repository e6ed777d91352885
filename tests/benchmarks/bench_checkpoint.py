"""What checkpoints cost a run, and how long a killed one takes to get back to work.

    python tests/benchmarks/bench_checkpoint.py [--backbone mobilenetv2_100] [--steps 60] [--every 10] [--nproc 1]

The embedding stage on drawn people at 128×64, ZeRO 1, started as a user does. Printed: how long a checkpoint keeps the
loop waiting, how long a step is, the share of time at one checkpoint in 500 steps (the default), the time of the same
steps with and without checkpoints (so that what is written beside the training counts too), and the seconds from a
start to its first step, of a fresh run and of one that was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

SETTINGS: dict[str, Any] = {
    "data": {
        "root": "shards", "sources": ["plaza"], "target": "campus", "image": [128, 64], "threads": 1,
        "synthetic": {name: {"domain": name, "identities": 60, "cameras": 3, "images_per_camera": 3, "height": 128}
                      for name in ("plaza", "campus")},
    },
    "defaults": {"precision": "fp32", "log_every": 1},
    "stages": {"embedding": {"init": "random", "epochs": None}},
}


Records = list[dict[str, Any]]


def run(folder: Path, name: str, nproc: int, *keys: str, until: int | None = None) -> tuple[float, Records]:
    """Starts the stage.

    Args:
        folder: Where everything lies.
        name: The run folder.
        nproc: Ranks.
        keys: Of the recipe.
        until: Kill the whole run once this step is recorded.

    Returns:
        Seconds from the start to the first step that it recorded, and all records.
    """
    metrics = folder / name / "metrics.jsonl"
    before, began, first = _records(metrics), time.perf_counter(), 0.0
    command = [
        sys.executable,
        "-c",
        "from embae.trainer.commands.app import main; main()",
        "train",
        "baseline",
        "--settings",
        "bench.yaml",
        "--stage",
        "embedding",
        "--nproc",
        str(nproc),
        "--out",
        name,
        *keys,
    ]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while process.poll() is None:
            steps = [record["step"] for record in _records(metrics)[len(before):] if record["kind"] == "train"]
            if steps and not first:
                first = time.perf_counter() - began
            if until and steps and steps[-1] >= until:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        if process.wait() and not until:
            sys.exit("the run failed")
    return first, _records(metrics)


def _records(metrics: Path) -> Records:
    if not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--backbone", default="mobilenetv2_100")
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--every", type=int, default=10)
    options.add_argument("--nproc", type=int, default=1)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        SETTINGS["model"] = {"backbone": given.backbone}
        SETTINGS["stages"]["embedding"]["steps"] = given.steps
        (folder / "bench.yaml").write_text(yaml.safe_dump(SETTINGS))
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        for turn in range(2):
            for way, every in (("with", given.every), ("without", 10**9)):
                start, records = run(folder, f"{way}-{turn}", given.nproc, f"checkpoints.every={every}")
                train = [record for record in records if record["kind"] == "train"]
                own = [72 / record["images_per_s"] for record in train[given.every:]]
                step = statistics.median(own)
                waits = [record["seconds_waited"] for record in records if record["kind"] == "checkpoint"]
                seconds[way].append(sum(own) + (sum(waits[1:]) if way == "with" else 0.0))
                if way == "with":
                    stall, size = statistics.median(waits), _size(folder / f"{way}-{turn}")
                    print(f"a checkpoint of {size / 1e6:.0f} MB: {1000 * stall:.0f} ms of waiting; a step: "
                          f"{1000 * step:.0f} ms; one in 500 steps: {stall / (5 * step):.2f} % of the time", flush=True)
        print(f"{given.steps - given.every} steps with a checkpoint every {given.every}: "
              f"{min(seconds['with']) / min(seconds['without']):.3f} times the time without")
        print(f"a fresh start to its first step: {start:.1f} s")
        run(folder, "killed", given.nproc, f"checkpoints.every={given.every}", until=2 * given.every + 1)
        start, records = run(folder, "killed", given.nproc, f"checkpoints.every={given.every}")
        print(f"a killed run's start to its first step: {start:.1f} s")


def _size(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("state.safetensors"))


if __name__ == "__main__":
    main()
