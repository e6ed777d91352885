"""GPUs are left to the tests marked for them: what the others show holds on CPU, on more ranks than there are GPUs."""

from __future__ import annotations

import gc
import os

import pytest

from embae.trainer.runtime.launch import count_gpus

# It would walk through all that the tests import, and find nothing: measured, two fifths of the time that takes.
gc.disable()

_MARKED = "gpu"
_VISIBLE = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_VISIBLE] = {}
    if config.option.markexpr != _MARKED:
        if count_gpus():
            config.stash[_VISIBLE] = dict(os.environ)
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


_OF_RANKS = {"computed", "rank_folder", "rank_logs", "undisturbed"}  # fixtures


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _OF_RANKS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("ranks")
        if "slurm" in item.path.relative_to(config.rootpath).parts:
            item.add_marker("slurm")
    if config.stash[_VISIBLE]:  # then tests/test_gpu.py runs them
        marked = [item for item in items if item.get_closest_marker(_MARKED)]
        items[:] = [item for item in items if item not in marked]
        config.hook.pytest_deselected(items=marked)


def pytest_collection_finish() -> None:
    gc.freeze()  # torch and the like are not walked through in the tests either
    gc.enable()


@pytest.fixture(scope="session")
def with_gpus(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of processes that may use the GPUs; empty where there are none."""
    return request.config.stash[_VISIBLE]
