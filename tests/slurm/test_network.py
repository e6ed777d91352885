"""torchrun on two computers, and the cable between them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.network import Network
from helpers.slurm_jobs import EVERY, WORDS, Desk

TIMEOUT = 15  # seconds that a rank waits for a silent one


def start(network: Network, desk: Desk, run: str, log: Path) -> dict[str, subprocess.Popen[str]]:
    """The README's line for several nodes, on both, each with a log of its own."""
    words = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", "one:29400",
             "-m", "embae.trainer", *WORDS, f"timeout={TIMEOUT}", "--out", run]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return {name: node.start(sys.executable, "-m", "torch.distributed.run", *words, cwd=desk.folder, env=env,
                             log=(log / name).open("a"))
            for name, node in network.nodes.items()}


def test_a_cut_cable_ends_both_sides_and_mended_they_go_on(
    network: Network, desk: Desk, expected: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.mkdir()
    processes = start(network, desk, "cut", log)
    desk.reach("cut", EVERY + 10)
    network.cut("two")
    since = time.monotonic()
    codes = {name: process.wait(90) for name, process in processes.items()}
    took = time.monotonic() - since
    said = {name: (log / name).read_text() for name in processes}
    print(f"both ended {took:.0f} s after the cut")
    assert codes == {"one": 1, "two": -signal.SIGKILL}, said
    for name, waited in (("one", "rank 1 .* last reported"), ("two", "The store that the ranks met at")):
        sentences = [line for line in said[name].splitlines() if line.startswith("embae: ")]
        assert len(sentences) == 1 and re.search(waited, sentences[0]), said[name]
    assert took < TIMEOUT + 30

    network.mend("two")
    processes = start(network, desk, "cut", log)
    codes = {name: process.wait(200) for name, process in processes.items()}
    assert codes == {"one": 0, "two": 0}, {name: (log / name).read_text() for name in processes}
    assert f"resumes after step {EVERY}," in (log / "one").read_text()
    assert desk.weights("cut") == expected
