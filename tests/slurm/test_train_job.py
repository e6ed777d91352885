"""Whole jobs under a real SLURM: what stops them, and that they end as if nothing had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import Desk


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, desk: Desk) -> bytes:
    """What two ranks on two nodes export if nothing stops them; sent by the command."""
    job = cluster.run(Path(sys.executable).parent / "embae", "slurm", "my recipe.yaml", "--nodes", 2,
                      "--ranks-per-node", 1, "--out", "undisturbed", "--submit", cwd=desk.folder).strip()
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), desk.log(job, "tiny")
    return desk.weights("undisturbed")


def test_undisturbed(undisturbed) -> None:
    pass
