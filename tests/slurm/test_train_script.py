"""What train.sbatch tells the ranks, and what it makes of how they end. SLURM is real, a rank a line of Python."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.network import until
from helpers.slurm_cluster import Cluster
from helpers.slurm_jobs import TRAIN

# Stands in for the environment's Python. It notes that it was started, where and with what, and runs the test's lines.
RANK = """#!{python}
import json, os, signal, sys, time
from pathlib import Path
env, out = os.environ, Path(sys.argv[sys.argv.index("--out") + 1])
restart = int(env.get("SLURM_RESTART_COUNT", 0))
out.mkdir(parents=True, exist_ok=True)
note = out / ("started-" + env["SLURMD_NODENAME"] + "-" + env["SLURM_LOCALID"] + "-" + str(restart))
note.with_suffix(".partial").write_text(json.dumps([sys.argv, dict(env)]))
def stop(*_):
    (out / "stopped").touch()
    sys.exit(75)
def told():
    note.with_suffix(".partial").rename(note)
def listen():
    signal.signal(signal.SIGTERM, stop)
    told()
    time.sleep(120)
    sys.exit("in vain")
exec(env["LINES"])
told()
"""

Send = Callable[..., str]


@pytest.fixture
def send(cluster: Cluster, tmp_path: Path) -> Send:
    """``send(lines, *sbatch_options, **env)``: a job whose ranks run these lines in the folder ``run``; its number."""
    (tmp_path / "it's").mkdir()
    python = tmp_path / "it's" / "python"  # no space in its own name: proctrack/linuxproc would lose the process
    python.write_text(RANK.format(python=sys.executable))
    python.chmod(0o755)

    def send(lines: str, *options: str, words: tuple[str, ...] = ("recipe",), **env: str) -> str:
        env = {"EMBAE_PYTHON": str(python), "EMBAE_OUT": str(tmp_path / "run"), "EMBAE_DIRECT": "1", **env}
        return cluster.submit(*options, TRAIN, *words, cwd=tmp_path, LINES=lines, **env)

    return send


def started(run: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """By node, rank there and restart, what the ranks of a run were started with."""
    return {note.name.removeprefix("started-"): tuple(json.loads(note.read_text()))
            for note in sorted(run.glob("started-*")) if note.suffix != ".partial"}


def outcome(ended: dict[str, str]) -> tuple[str, str, str]:
    return ended["JobState"], ended["ExitCode"], ended["Restarts"]


def test_without_torchrun_each_rank_knows_its_place(cluster: Cluster, send: Send, tmp_path: Path) -> None:
    words = ("recipe", "key=it's \"$HOME\"; *", "--settings", "a b")
    job = send("", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=2", "--export=ALL",
               words=words)
    assert outcome(cluster.wait(job)) == ("COMPLETED", "0:0", "0")
    ranks = started(tmp_path / "run")
    places = {name: tuple(env[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
              for name, (_, env) in ranks.items()}
    assert places == {"node1-0-0": ("0", "0", "4", "2"), "node1-1-0": ("1", "1", "4", "2"),
                      "node2-0-0": ("2", "0", "4", "2"), "node2-1-0": ("3", "1", "4", "2")}
    for argv, env in ranks.values():
        assert argv[1:] == ["-m", "embae.trainer", "--out", str(tmp_path / "run"), *words]
        assert (env["MASTER_ADDR"], env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"]) == ("node1", "0,1", "2")


def test_one_torchrun_a_node(cluster: Cluster, send: Send, tmp_path: Path) -> None:
    job = send("", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", words=("recipe", "a b"), EMBAE_DIRECT="")
    assert outcome(cluster.wait(job)) == ("COMPLETED", "0:0", "0")
    agents = started(tmp_path / "run")
    assert list(agents) == ["node1-0-0", "node2-0-0"]
    for name, (argv, env) in agents.items():
        said = dict(itertools.pairwise(argv))
        assert (said["--nnodes"], said["--nproc-per-node"], env["CUDA_VISIBLE_DEVICES"]) == ("2", "2", "0,1")
        assert said["--rdzv-conf"] == f"is_host={int(name.startswith('node1'))}"
        assert argv[-6:] == ["-m", "embae.trainer", "--out", str(tmp_path / "run"), "recipe", "a b"]
    assert len({argv[argv.index("--rdzv-endpoint") + 1] for argv, _ in agents.values()}) == 1


def test_ports_are_a_jobs_own(cluster: Cluster, send: Send, tmp_path: Path) -> None:
    jobs = [send("time.sleep(1)", "--hold", EMBAE_OUT=str(tmp_path / f"run{number}")) for number in range(2)]
    taken = 20000 + int(jobs[1]) % 5000
    listener = cluster.network.nodes["node1"].start(
        sys.executable, "-c", f"import socket, time; s = socket.create_server(('', {taken})); time.sleep(30)")
    try:
        until(lambda: str(taken) in cluster.network.nodes["node1"].run("ss", "-ltn"), 20, "the listener")
        for job in jobs:
            cluster.run("scontrol", "release", job)
        for job in jobs:
            assert outcome(cluster.wait(job))[0] == "COMPLETED"
    finally:
        listener.kill()
    ports = [int(started(tmp_path / f"run{number}")["node1-0-0"][1]["MASTER_PORT"]) for number in range(2)]
    assert ports == [taken - 1, taken + 5000]


STOPPED_ONCE = "restart or (out / 'stopped').touch()"  # what is seen of 75 behind torchrun, which makes it 1
OUTCOMES = {
    "failed": ("sys.exit(1)", ("FAILED", "1:0", "0")),
    "bad input": ("sys.exit(2)", ("FAILED", "2:0", "0")),
    "killed": ("os.kill(os.getpid(), 9)", ("FAILED", "137:0", "0")),
    "stopped": ("sys.exit(0 if restart else 75)", ("COMPLETED", "0:0", "1")),
    "stopped behind torchrun": (f"{STOPPED_ONCE}; sys.exit(0 if restart else 1)", ("COMPLETED", "0:0", "1")),
    "stopped once, then failed": (f"{STOPPED_ONCE}; sys.exit(1)", ("FAILED", "1:0", "1")),
    "stopped for ever": ("sys.exit(75)", ("FAILED", "75:0", "2")),
}


def test_what_is_stopped_goes_on_and_what_fails_does_not(cluster: Cluster, send: Send, tmp_path: Path) -> None:
    jobs = {name: send(lines, EMBAE_OUT=str(tmp_path / name), EMBAE_MAX_RESTARTS="2")
            for name, (lines, _) in OUTCOMES.items()}
    assert {name: outcome(cluster.wait(job)) for name, job in jobs.items()} == {
        name: wanted for name, (_, wanted) in OUTCOMES.items()}


def test_restarts_that_slurm_makes_count_too(cluster: Cluster, send: Send, tmp_path: Path) -> None:
    job = send("listen()", EMBAE_MAX_RESTARTS="0")
    until(lambda: started(tmp_path / "run"), 30, "the rank")
    cluster.run("scontrol", "requeue", job)
    assert outcome(cluster.wait(job)) == ("FAILED", "1:0", "1")
    assert len(started(tmp_path / "run")) == 1


def test_cancelled_is_cancelled(cluster: Cluster, send: Send, tmp_path: Path) -> None:
    """Though its ranks leave a checkpoint, as they do for every SIGTERM."""
    job = send("listen()")
    until(lambda: started(tmp_path / "run"), 30, "the rank")
    cluster.run("scancel", job)
    assert cluster.wait(job)["JobState"] == "CANCELLED"
    until((tmp_path / "run" / "stopped").exists, 30, "the checkpoint")
    log = tmp_path / f"embae-{job}.log"
    until(lambda: "stopped; the job is COMPLETING" in log.read_text(), 30, "the script's end")
    time.sleep(1)
    assert (cluster.job(job)["JobState"], cluster.job(job)["Restarts"]) == ("CANCELLED", "0")


def test_a_warning_is_repeated_until_the_ranks_hear_it(cluster: Cluster, send: Send, tmp_path: Path) -> None:
    """The first one finds them starting, and must not kill them."""
    job = send("time.sleep(0 if restart else 8); restart or listen()")
    until(lambda: list(tmp_path.glob("run/*.partial")), 30, "the rank")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert outcome(cluster.wait(job)) == ("COMPLETED", "0:0", "1")
    assert [name[-1] for name in sorted(started(tmp_path / "run"), key=lambda name: name[-1])] == ["0", "1"]
    assert (tmp_path / f"embae-{job}.log").read_text().count("time limit") == 1


def test_seeds_are_stopped_one_by_one(cluster: Cluster, send: Send, tmp_path: Path) -> None:
    """Of an array's tasks, one has the number of the array itself; what is done to that one leaves the others alone."""
    array = send("restart or listen()", "--array=0-2", "--output=%x-%A_%a.log")
    runs = [tmp_path / "run" / f"seed-{seed}" for seed in range(3)]
    until(lambda: all(map(started, runs)), 30, "the ranks")
    words, env = zip(*(next(iter(started(run).values())) for run in runs), strict=True)
    assert [argv[-2:] for argv in words] == [["recipe", f"seed={seed}"] for seed in range(3)]
    own = [one["SLURM_JOB_ID"] for one in env].index(array)
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_{own}")
    until(lambda: len(started(runs[own])) == 2, 30, "the restart")
    assert [len(started(run)) for run in runs] == [2 if seed == own else 1 for seed in range(3)]
    for seed in range(3):
        if seed != own:
            cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_{seed}")
    until(lambda: all(len(started(run)) == 2 for run in runs), 60, "their restarts")
