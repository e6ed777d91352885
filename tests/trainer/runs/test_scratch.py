"""Where temporary embeddings lie while a command runs: the run's cache, or a folder of the launcher."""

from __future__ import annotations

from pathlib import Path

import pytest

from embae.trainer.runs.scratch import scratch_folder


def test_beside_the_models_nothing_is_made(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        assert folder == tmp_path / "cache" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("held", ["run", "run/cache"])
def test_where_that_is_read_only_they_lie_in_the_launchers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    (tmp_path / "launcher").mkdir()
    (tmp_path / held).mkdir(parents=True)
    monkeypatch.setenv("EMBAE_STORE", str(tmp_path / "launcher" / "store"))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path / held)  # root may write anywhere
    with scratch_folder(tmp_path / "run") as folder:
        assert folder.is_dir() and folder.parent == tmp_path / "launcher"
    assert not folder.exists()
