"""The cluster, a run on it that nothing interrupts, and what they need of the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import tiny_run
from helpers.network import Network, missing
from helpers.slurm_cluster import PROGRAMS, Cluster
from helpers.slurm_jobs import RECIPE, Desk


def _require(why: str) -> None:
    if why and os.environ.get("EMBAE_REQUIRE_SLURM") == "1":
        pytest.fail(why, pytrace=False)
    if why:
        pytest.skip(why)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes under SLURM."""
    _require(missing(*PROGRAMS))
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Two computers joined by a cable."""
    _require(missing())
    network = Network(tmp_path, ["one", "two"])
    yield network
    network.close()


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A user's folder with a recipe and shards, under a name that has to be quoted."""
    folder = tmp_path_factory.mktemp("desk") / "it's \"my\" $HOME; 50 %"
    folder.mkdir()
    shutil.copytree(tiny_run.shards(), folder / "shards")
    tiny_run.write(folder, RECIPE, "my recipe.yaml")
    return Desk(folder)


@pytest.fixture(scope="session")
def expected(desk: Desk) -> bytes:
    """What two ranks export if nothing stops them, started on one computer by our own launcher."""
    done = tiny_run.embae("train", "my recipe.yaml", "--nproc", 2, "--out", "expected", cwd=desk.folder)
    assert done.returncode == 0, done.stderr
    return desk.weights("expected")
