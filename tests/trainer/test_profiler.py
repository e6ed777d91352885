"""``embae train --profile``: a trace that can be opened, and training that is none the wiser."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
from tiny import embae


def test_a_profiled_run_leaves_a_trace_and_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "shards").symlink_to(tiny.shards())
    tiny.write(tmp_path, tiny.tree())
    exports = []
    for words in ([], ["--profile"]):
        run = tmp_path / f"run{len(words)}"
        done = embae("train", "tiny.yaml", "--stage", "embedding", "--nproc", 2, "--out", run, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        exports.append((run / "embedding" / "export" / "model.safetensors").read_bytes())
        traces = list((run / "tensorboard" / "embedding").glob("*.pt.trace.json"))
        assert len(traces) == len(words)  # of the first rank alone
    assert exports[0] == exports[1]
    events = json.loads(traces[0].read_text())["traceEvents"]
    named = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {name: named.count(name) for name in ("load", "forward", "backward", "optimizer")} == dict.fromkeys(
        ("load", "forward", "backward", "optimizer"), 4)
    assert any(event["name"] == "aten::convolution_backward" for event in events)
