"""Sharding as a job."""

from __future__ import annotations

import sys
from pathlib import Path

from helpers import tiny_run
from helpers.network import until
from helpers.slurm_cluster import Cluster
from helpers.slurm_jobs import SHARD

from embae.datasets.index.arrow_index import Index

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


# Stands in for the environment's Python: one job of an array claims a shard and does not write it, once, and the others
# begin after that.
ONE_HANGS = """#!{python}
import os, sys, time
claimed = {claimed!r}
if os.environ["SLURM_ARRAY_TASK_ID"] == "7" and "SLURM_RESTART_COUNT" not in os.environ:
    from embae.datasets.sharding.queue import ShardQueue
    from embae.trainer.commands.app import main
    take = ShardQueue.next
    def hang(queue):
        assert take(queue)
        open(claimed, "w").close()
        time.sleep(120)
    ShardQueue.next = hang
    sys.argv = ["embae", *sys.argv[3:]]
    main()
while not os.path.exists(claimed):
    time.sleep(0.1)
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


def test_the_jobs_of_an_array_make_one_dataset(cluster: Cluster, tmp_path: Path) -> None:
    """Whatever their numbers; one of them is preempted with a shard begun. The same as one process makes, to a byte."""
    python, claimed = tmp_path / "python", tmp_path / "claimed"
    python.write_text(ONE_HANGS.format(python=sys.executable, claimed=str(claimed)))
    python.chmod(0o755)
    array = cluster.submit("--array=4-10:3", "--cpus-per-task=1", "--output=%x-%A_%a.log", SHARD, *DRAW, "--out",
                           tmp_path / "shared", cwd=tmp_path, EMBAE_PYTHON=str(python))
    alone = tiny_run.embae("shard", *DRAW, "--out", "alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    until(claimed.exists, 60, "the shard that is begun")
    cluster.run("scancel", "--signal=TERM", f"{array}_7")
    for task, restarts in ((4, "0"), (7, "1"), (10, "0")):
        ended, log = cluster.wait(f"{array}_{task}"), tmp_path / f"embae-shard-{array}_{task}.log"
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", restarts), log.read_text()
    made, wanted = ({path.name: path.read_bytes() for path in (tmp_path / out / "synthetic").iterdir()}
                    for out in ("shared", "alone"))
    assert made == wanted
    assert len(Index.open(tmp_path / "shared" / "synthetic").shards) == 3
