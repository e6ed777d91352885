"""Whole jobs under a real SLURM: what stops them, and that they end as if nothing had.

Every job trains on two nodes with a rank each, and what it exports is bit for bit what two ranks on one computer do.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

from helpers.network import until
from helpers.slurm_cluster import Cluster
from helpers.slurm_jobs import EVERY, STEPS, WORDS, Desk

RANK = ("-m", "embae.trainer", "--out")
EMBAE = Path(sys.executable).parent / "embae"


def starts(log: str) -> list[int]:
    """Which restart each start of a job says that it is."""
    return [int(number) for number in re.findall(r"restart (\d+) of \d+ at most", log)]


def finished(cluster: Cluster, desk: Desk, job: str, restarts: int, log: str = "embae") -> str:
    """Waits for a job's end, which is a good one; what it has printed."""
    ended = cluster.wait(job)
    said = desk.log(job, log)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", str(restarts)), said
    assert starts(said) == list(range(restarts + 1))
    assert said.count("Rank-1, 95 %") == 1
    return said


def went_on_at(said: str) -> int:
    """The step of the checkpoint with which the last start began."""
    return int(re.findall(r"resumes after step (\d+)", said)[-1])


def test_a_job_of_two_nodes(cluster: Cluster, desk: Desk, expected: bytes) -> None:
    job = cluster.run(EMBAE, "slurm", *WORDS, "--nodes", 2, "--ranks-per-node", 1,
                      "--out", "two nodes", "--submit", cwd=desk.folder).strip()
    finished(cluster, desk, job, 0, "tiny")
    assert "world size 2" in (desk.folder / "two nodes" / "recipe.yaml").read_text()
    assert desk.weights("two nodes") == expected


def test_queued_again_by_hand(cluster: Cluster, desk: Desk, expected: bytes) -> None:
    job = desk.send(cluster, "by hand")
    desk.reach("by hand", EVERY + 10)
    cluster.run("scontrol", "requeue", job)
    assert went_on_at(finished(cluster, desk, job, 1)) > EVERY
    assert desk.weights("by hand") == expected


def test_time_limit(cluster: Cluster, desk: Desk, expected: bytes) -> None:
    """SLURM looks each 30 s and warns as much earlier, here 20 to 50 s after the start; the ranks halt until then.

    They are started by srun, as in the next test, without torchrun.
    """
    job = desk.send(cluster, "limit", "--time=1", "--signal=B:USR1@10", EMBAE_DIRECT="1")
    desk.reach("limit", EVERY + 10)
    ranks = [pid for node in cluster.network.nodes.values() for pid in node.find(sys.executable, *RANK, "limit")]
    assert len(ranks) == 2
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    until(lambda: "the time limit is near" in desk.log(job), 60, "the warning")
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    cluster.wait(job, states=["PENDING"])
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")  # else it may take more than two starts
    said = finished(cluster, desk, job, 1)
    assert "stopped; queued again" in said
    assert desk.weights("limit") == expected


def test_preempted(cluster: Cluster, desk: Desk, expected: bytes) -> None:
    """By a job that wants all of both nodes; SLURM tells the ranks, and not the script."""
    job = desk.send(cluster, "preempted", "--partition=low", EMBAE_DIRECT="1")
    desk.reach("preempted", EVERY + 10)
    cluster.run("srun", "--partition=high", "--nodes=2", "--exclusive", "true", timeout=120)
    said = finished(cluster, desk, job, 1)
    assert "stopped; queued again" in said
    assert desk.weights("preempted") == expected


def test_a_node_dies(cluster: Cluster, desk: Desk, expected: bytes) -> None:
    """Nobody had time for a checkpoint: the run goes on from the newest one that is whole."""
    job = desk.send(cluster, "dead node")
    desk.reach("dead node", EVERY + 10)
    cluster.network.nodes["node2"].switch_off()
    until(lambda: "down" in str(cluster.states("node2")), 90, lambda: f"node2 to be down: {cluster.states('node2')}")
    cluster.restart_node("node2")
    assert EVERY <= went_on_at(finished(cluster, desk, job, 1)) < STEPS
    assert desk.weights("dead node") == expected
