"""Sharding as a job."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster import Cluster
from jobs import SHARD
from network import until

from embae.datasets.index import Index

# Stands in for the environment's Python: sharding that does not end by itself, once.
SLOW = """#!{python}
import os, sys, time
if "SLURM_RESTART_COUNT" in os.environ:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
print("waiting", flush=True)
time.sleep(120)
"""
DRAW = ("synthetic", "domain=plaza", "identities=8", "cameras=2", "images_per_camera=2", "height=40")


def test_a_dataset_is_sharded(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "it's here"
    job = cluster.run(Path(sys.executable).parent / "embae", "slurm", "shard", "--submit", "--sbatch",
                      "cpus-per-task=2", "--", *DRAW, "--out", out, cwd=tmp_path).strip()
    ended, log = cluster.wait(job), tmp_path / f"embae-shard-{job}.log"
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()
    assert len(Index.open(out / "synthetic")) > 8


def test_sharding_that_is_stopped_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """Near its time limit, of which the script is told; and by preemption, of which only the step is."""
    python = tmp_path / "python"
    python.write_text(SLOW.format(python=sys.executable))
    python.chmod(0o755)
    jobs = [cluster.submit(SHARD, *DRAW, "--name", f"drawn{number}", "--out", tmp_path, cwd=tmp_path,
                           EMBAE_PYTHON=str(python)) for number in range(2)]
    logs = [tmp_path / f"embae-shard-{job}.log" for job in jobs]
    until(lambda: all(log.exists() and "waiting" in log.read_text() for log in logs), 60, "the jobs' start")
    cluster.run("scancel", "--batch", "--signal=USR1", jobs[0])
    cluster.run("scancel", "--signal=TERM", jobs[1])
    for job, log in zip(jobs, logs, strict=True):
        ended = cluster.wait(job)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log.read_text()
        assert "stopped; queued again" in log.read_text()
    assert [len(Index.open(tmp_path / f"drawn{number}")) > 8 for number in range(2)] == [True, True]
