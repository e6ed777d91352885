"""torchrun with fewer or other ranks: what is left of them goes on from the last checkpoint."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import tiny_run

pytestmark = pytest.mark.ranks

STEPS = "stages.embedding.epochs=2"


class Agents:
    """torchrun processes that meet at one port, each as a node would be."""

    def __init__(self, folder: Path):
        self._folder, self._started = folder, list[subprocess.Popen[bytes]]()
        self.port = _free_port()

    def start(self, nodes: str, ranks: int, *keys: str) -> subprocess.Popen[bytes]:
        number = len(self._started)
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", str(ranks)),
            *("--rdzv-backend", "c10d", "--rdzv-id", "elastic", "--rdzv-endpoint", f"localhost:{self.port}"),
            *("--rdzv-conf", "last_call_timeout=3", "--max-restarts", "3"),
            *("-m", "embae.trainer", "tiny.yaml", "--stage", "embedding", "checkpoints.every=2", STEPS, *keys),
        ]
        with (self._folder / f"agent-{number}.log").open("wb") as log:
            self._started.append(
                subprocess.Popen(
                    command,
                    cwd=self._folder,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return self._started[-1]

    def said(self, number: int = 0) -> str:
        return (self._folder / f"agent-{number}.log").read_text(errors="replace")

    def close(self) -> None:
        for agent in self._started:
            if agent.poll() is None:
                for worker in workers(agent):
                    os.kill(worker, signal.SIGKILL)
                agent.kill()
                agent.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def workers(agent: subprocess.Popen[bytes]) -> list[int]:
    """Ranks of an agent, in their order."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return sorted(map(int, children))


def _until(condition: Callable[[], bool], agents: Agents, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, agents.said()
        time.sleep(0.05)


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    tiny_run.write(tmp_path, tiny_run.tree(data__root=str(tiny_run.shards())))
    found = Agents(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The export of two ranks that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny_run.write(folder, tiny_run.tree(data__root=str(tiny_run.shards())))
    done = tiny_run.embae("train", "tiny.yaml", STEPS, "--stage", "embedding", "--nproc", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "runs" / "tiny" / "embedding" / "export" / "model.safetensors").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_started_again(agents: Agents, tmp_path: Path, undisturbed: bytes, rank: int) -> None:
    agent = agents.start("1", 2)
    run = tmp_path / "runs" / "tiny" / "embedding"
    _until(lambda: (run / "checkpoints" / "step-000006").exists(), agents)
    os.kill(workers(agent)[rank], signal.SIGKILL)
    assert agent.wait(timeout=120) == 0, agents.said()
    assert re.search(r"\[embedding\] resumes after step ([6-9]|\d\d),", agents.said())
    assert (run / "export" / "model.safetensors").read_bytes() == undisturbed


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_lost_node_is_done_without(agents: Agents, tmp_path: Path) -> None:
    first = agents.start("1:2", 1)
    time.sleep(2)  # so that it holds the store; the node that holds it cannot be done without
    second = agents.start("1:2", 1)
    run = tmp_path / "runs" / "tiny"
    _until(lambda: (run / "embedding" / "checkpoints" / "step-000006").exists(), agents)
    assert "world size 2" in (run / "recipe.yaml").read_text()
    for process in (second.pid, *workers(second)):
        os.kill(process, signal.SIGKILL)
    assert first.wait(timeout=150) == 0, agents.said()
    assert "world size 1" in (run / "recipe.yaml").read_text()
    assert re.search(r"\[embedding\] resumes after step ([6-9]|\d\d),", agents.said())
    assert (run / "embedding" / "done").exists()
