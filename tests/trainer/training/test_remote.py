"""A run whose data lies behind a web server."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import tiny_run, web_server

from embae.trainer.recipe.load import load_recipe
from embae.trainer.runs.preflight import check_run

pytestmark = pytest.mark.ranks


def test_a_run_over_http_equals_one_from_a_folder(tmp_path: Path) -> None:
    """A labelled stage with a window: the same weights to the last bit, and no url twice."""
    recipe = tiny_run.tree(run=["embedding"], evaluate={"Baseline": "embedding"}, stages__embedding__data__window=1)
    path = tiny_run.write(tmp_path, recipe)
    with web_server.serve(tiny_run.shards()) as server:
        for name, root in (("near", str(tiny_run.shards())), ("far", server.url)):
            done = tiny_run.embae("train", path, f"data.root={root}", f"data.cache.folder={tmp_path / 'cache'}",
                              "--out", tmp_path / name, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert bool(server.gets) == (name == "far")
        assert {count for path, count in server.gets.items() if not path.endswith("dataset.yaml")} == {1}
    near, far = (tmp_path / name / "embedding" / "export" / "model.safetensors" for name in ("near", "far"))
    assert near.read_bytes() == far.read_bytes()
    near, far = (tmp_path / name / "evaluation" / "park.json" for name in ("near", "far"))
    assert near.read_bytes() == far.read_bytes()
    again = load_recipe(str(tmp_path / "far" / "recipe.yaml"))
    assert str(again.data.root) == server.url and again.data.cache.folder == tmp_path / "cache"


def test_a_cache_that_is_too_small_is_reported_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_run.write(tmp_path, tiny_run.tree(run=["embedding"], evaluate={}))
    with web_server.serve(tiny_run.shards()) as server:
        far = [f"data.root={server.url}", f"data.cache.folder={tmp_path / 'cache'}"]
        for overrides, told in ((["data.cache.gib=0.00003"], True), (["data.cache.gib=1"], False),
                                (["data.cache.gib=0.00003", "stages.embedding.data.window=2"], False)):
            check_run(load_recipe(str(path), [*far, *overrides]), 1)
            said = capsys.readouterr().err
            assert ("set stages.embedding.data.window, or enlarge data.cache" in said) == told, said
