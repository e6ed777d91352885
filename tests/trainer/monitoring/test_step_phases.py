"""``embae train --profile``: a trace that can be opened, and training that is none the wiser."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.tiny_run import embae


def test_a_profiled_run_leaves_a_trace_and_the_same_weights(
    undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path
) -> None:
    folder, words = undisturbed
    done = embae(*words, "--stage", "embedding", "--out", tmp_path / "run", "--profile", cwd=folder)
    assert done.returncode == 0, done.stderr
    exports, traces = [], []
    for run in (folder / "whole", tmp_path / "run"):
        exports.append((run / "embedding" / "export" / "model.safetensors").read_bytes())
        traces.append(list((run / "tensorboard" / "embedding").glob("*.pt.trace.json")))
    assert exports[0] == exports[1]
    assert [len(one) for one in traces] == [0, 1]  # of the first rank alone
    events = json.loads(traces[1][0].read_text())["traceEvents"]
    named = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {name: named.count(name) for name in ("load", "forward", "backward", "optimizer")} == dict.fromkeys(
        ("load", "forward", "backward", "optimizer"), 4)
    assert any(event["name"] == "aten::convolution_backward" for event in events)
