"""A run whose data lies behind a web server."""

from __future__ import annotations

import sys
from pathlib import Path

import tiny

from embae.trainer.recipe import load

sys.path.insert(0, str(Path(__file__).parent.parent / "datasets"))

import web


def test_a_run_over_http_equals_one_from_a_folder(tmp_path: Path) -> None:
    """A labelled stage with a window: the same weights to the last bit, and no url twice."""
    recipe = tiny.tree(run=["embedding"], evaluate={"Baseline": "embedding"}, stages__embedding__data__window=1)
    path = tiny.write(tmp_path, recipe)
    with web.serve(tiny.shards()) as server:
        for name, root in (("near", str(tiny.shards())), ("far", server.url)):
            done = tiny.embae("train", path, f"data.root={root}", f"data.cache.folder={tmp_path / 'cache'}",
                              "--out", tmp_path / name, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert bool(server.gets) == (name == "far")
        assert {count for path, count in server.gets.items() if not path.endswith("dataset.yaml")} == {1}
    near, far = (tmp_path / name / "embedding" / "export" / "model.safetensors" for name in ("near", "far"))
    assert near.read_bytes() == far.read_bytes()
    near, far = (tmp_path / name / "evaluation" / "park.json" for name in ("near", "far"))
    assert near.read_bytes() == far.read_bytes()
    again = load(str(tmp_path / "far" / "recipe.yaml"))
    assert str(again.data.root) == server.url and again.data.cache.folder == tmp_path / "cache"
