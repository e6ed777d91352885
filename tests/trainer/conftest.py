"""What the trainer's tests share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ranks

# The cores are shared, with ranks or with other work, and waiting threads spin: measured, 20 times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rank_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """``rank_folder(world_size)``: the folder of a launch."""
    base = tmp_path_factory.mktemp("ranks")
    return lambda world_size: base / str(world_size)


@pytest.fixture(scope="session")
def rank_logs(rank_folder: Callable[[int], Path]) -> Callable[[int], Iterator[str]]:
    """``rank_logs(world_size)``: the lines that the ranks of a launch printed."""

    def lines(world_size: int) -> Iterator[str]:
        for log in rank_folder(world_size).glob("rank-*.log"):
            yield from log.read_text().splitlines()

    return lines


@pytest.fixture(scope="session")
def computed(request: pytest.FixtureRequest, rank_folder: Callable[[int], Path]) -> Callable[..., list[Any]]:
    """``computed(function, world_size)``: what each rank returned from a function marked by `ranks.on_ranks`.

    The first call for a number of ranks runs every marked function of the collected modules in one launch.
    """
    modules = dict.fromkeys(item.module for item in request.session.items if isinstance(item, pytest.Function))
    launches: dict[int, str] = {}
    loaded: dict[tuple[str, int], list[Any]] = {}

    def name(function: ranks.Function) -> str:
        return f"{inspect.getfile(function)}:{function.__name__}"

    def get(function: ranks.Function, world_size: int) -> list[Any]:
        if world_size not in launches:
            wanted = [name(found) for module in modules for found in ranks.marked(module) if world_size in found.worlds]
            rank_folder(world_size).mkdir(exist_ok=True)
            launches[world_size] = ranks.launch(wanted, world_size, rank_folder(world_size), timeout_s=400)
        wrong = launches[world_size]
        files = [ranks.result_file(rank_folder(world_size), name(function), rank) for rank in range(world_size)]
        if not all(file.exists() for file in files):
            pytest.fail(f"{function.__name__} did not end on {world_size} ranks: {wrong}", pytrace=False)
        key = name(function), world_size
        if key not in loaded:
            loaded[key] = [torch.load(file) for file in files]
        return loaded[key]

    return get


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[object, ...]]:
    """A folder with shards, a recipe and its whole run on two ranks in ``whole``, and the words of that command."""
    from helpers import fault_injection, tiny_run

    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "shards").symlink_to(tiny_run.shards())
    tiny_run.write(folder, tiny_run.tree(scoring={"tta": "none"}, checkpoints={"every": 2}))
    words = ("train", "tiny.yaml", "stages.embedding.evaluate_every=4", "--nproc", 2)
    done = fault_injection.Command(*words, "--out", "whole", cwd=folder, notes=folder / "notes").start()
    assert done.code == 0, done.err
    return folder, words
