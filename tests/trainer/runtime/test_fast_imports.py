"""The garbage collector while modules are imported."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from embae.trainer.runtime.fast_imports import gc_paused


def test_it_rests_and_never_looks_at_what_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_uncollected.py").write_text("resting = not __import__('gc').isenabled()\nmade = [[]]\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    with gc_paused():
        import imported_uncollected as found  # type: ignore[import-not-found]
    assert found.resting and gc.isenabled()
    assert gc.get_freeze_count() > before and not any(one is found.made for one in gc.get_objects())
    later = [[]]  # type: ignore[var-annotated]
    with gc_paused():
        import imported_uncollected  # noqa: F401
    assert any(one is later for one in gc.get_objects())  # there was nothing to import


def test_it_goes_on_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), gc_paused():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()
