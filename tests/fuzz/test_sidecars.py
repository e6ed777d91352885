"""The JSON and other small files beside weights and labels: one target each, all damaged alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.damaged_dataset import copied, kept
from helpers.exported_model import an_export
from helpers.fuzzing import ODD, bent, damaged, edits, inputs, replaced, tree_edits, works_or_refuses
from hypothesis import given

from embae.datasets.sampling.pseudo_labels import CARD, LABELS, read_labels, write_labels
from embae.trainer.comparison.compare import Run, results
from embae.trainer.evaluation.stage_scores import read_stored
from embae.trainer.model.manifest import META, read_manifest
from embae.trainer.recipe.load import load_recipe
from embae.trainer.runs.score_table import SHOWN, are_scores, write_scores
from embae.trainer.runs.stage_folder import StageCost, finish_stage, read_cost


@dataclass(frozen=True)
class Target:
    """A file and what reads it.

    Attributes:
        path: The file, whole.
        read: Reads it; what it returns must be right, whatever the file says.
        names: What a refusal must name one of.
        spoils: Whether any other bytes that are read without a refusal are wrong.
    """

    path: Path
    read: Callable[[], Any]
    names: tuple[object, ...]

    def __repr__(self) -> str:
        return self.path.name


def a_mark(folder: Path) -> Target:
    with finish_stage(folder / "embedding", StageCost(17, 34, 1.5)):
        pass

    def read() -> None:
        took = read_cost(folder, "embedding")
        assert type(took.steps) is int and type(took.images) is int and 0 <= took.rank_seconds < float("inf")

    return Target(folder / "embedding" / "done", read, (folder / "embedding" / "done",))


def labels_of(folder: Path, name: str) -> Target:
    index = copied(folder)
    (folder / "labels").mkdir()
    count = index.count("train")
    write_labels(folder / "labels", index, "train", index.shard[:count] * 0 + 1)

    def read() -> None:
        labels = read_labels(folder / "labels", index, "train")
        assert labels.shape == (count,) and labels.min() >= -1 and labels.max() < count

    return Target(folder / "labels" / name, read, (folder / "labels",))


SCORES: dict[str, Any] = {**dict.fromkeys(SHOWN, 0.5), "queries": 7, "unmatched": 0, "interval": {"Rank-1": [0.4, 0.6]}}


def kept_scores(folder: Path) -> Target:
    path, asked = folder / "park.json", {"fingerprint": "abc", "tta": "flip"}
    path.write_text(json.dumps({**asked, "found": SCORES}))

    def read() -> None:
        found = read_stored(path, asked, are_scores)
        assert found is None or (set(SHOWN) <= found.keys() and found["interval"]["Rank-1"][1] is not None)

    return Target(path, read, ())


def run_scores(folder: Path, kind: str) -> Target:
    recipe = load_recipe("baseline", ["data.target=park"])
    rows = recipe.evaluate
    (folder / "evaluation").mkdir()
    write_scores(folder / "evaluation" / "park.json", "park", "flip", dict.fromkeys(rows, SCORES))
    (folder / "evaluation" / "park-probes.json").write_text(json.dumps({row: {"moved": 0.5} for row in rows}))
    for stage in recipe.run:
        with finish_stage(folder / stage, StageCost(17, 34, 1.5)):
            pass
    path = folder / "evaluation" / f"park{kind}.json"

    def read() -> None:
        for found in results(Run(recipe, folder)):
            assert are_scores(found.scores) and (found.probes is None or all(found.probes.values()) is not None)

    return Target(path, read, (path, folder))


def a_description(folder: Path) -> Target:
    an_export(folder)
    return Target(folder / META, lambda: read_manifest(folder), (folder,))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "done": a_mark, "labels.json": lambda folder: labels_of(folder, CARD),
    "labels.npy": lambda folder: labels_of(folder, LABELS), "kept scores": kept_scores,
    "scores": lambda folder: run_scores(folder, ""), "probes": lambda folder: run_scores(folder, "-probes"),
    "model.json": a_description,
}  # fmt: skip
"""What is read, by name: makes it whole in a folder. Another reader of small files is one more line here."""


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    made = TARGETS[request.param](tmp_path_factory.mktemp("target"))
    made.read()
    return made


@inputs(15)
@given(changes=edits)
def test_damaged_bytes(target: Target, changes: list[tuple[str, int, int]]) -> None:
    with kept(target.path), works_or_refuses(*target.names):
        target.path.write_bytes(damaged(target.path.read_bytes(), changes))
        target.read()


@inputs(15)
@given(changes=tree_edits)
def test_bent_trees(target: Target, changes: list[tuple[str, int, int]]) -> None:
    if target.path.suffix == ".npy":
        return
    tree = bent(json.loads(target.path.read_text()), changes)
    with kept(target.path), works_or_refuses(*target.names):
        target.path.write_text(json.dumps(tree))
        target.read()


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file(target: Target, odd: Any) -> None:
    with replaced(target.path, odd), works_or_refuses(*target.names) as refusals:
        target.read()
    assert refusals or not target.names


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "1e999", "NaN"])
def test_json_that_has_no_end(target: Target, text: str) -> None:
    with kept(target.path), works_or_refuses(*target.names) as refusals:
        target.path.write_text(text)
        target.read()
    assert refusals or not target.names
