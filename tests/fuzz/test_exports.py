"""Exports whose weights or descriptions are damaged, bent or made up: the right model comes out, or none."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.damaged_dataset import kept
from helpers.exported_model import an_export
from helpers.fuzzing import bent, damaged, edits, inputs, tree_edits, works_or_refuses
from helpers.toy_models import KEYS, Seen, images, model, parts_in
from hypothesis import given
from hypothesis import strategies as st

from embae.trainer.errors import WeightsError
from embae.trainer.model.manifest import META, WEIGHTS
from embae.trainer.model.saved import SavedModel
from embae.trainer.recipe.stage import Stage
from embae.trainer.training.initial_model import StageStart, initial_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("export")
    an_export(made)
    return made


def use(folder: Path) -> None:
    """Whatever could be restored must serve."""
    found = SavedModel.open(folder)
    restored = found.restore()
    with torch.inference_mode():
        assert restored(images(2, size=(64, 64)), torch.tensor([0, -1])).shape == (2, restored.z)
    state = found.state()
    assert state.keys() == restored.state_dict().keys()


@inputs(25)
@given(changes=edits, in_header=st.booleans())
def test_damaged_weights(folder: Path, changes: list[tuple[str, int, int]], in_header: bool) -> None:
    path = folder / WEIGHTS
    data = path.read_bytes()
    within = range(0, 8 + struct.unpack("<Q", data[:8])[0]) if in_header else None
    with kept(path), works_or_refuses(folder, only=(WeightsError,)):
        path.write_bytes(damaged(data, changes, within))
        use(folder)


@inputs(25)
@given(changes=tree_edits)
def test_bent_headers_of_weights(folder: Path, changes: list[tuple[str, int, int]]) -> None:
    path = folder / WEIGHTS
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    head = json.dumps(bent(json.loads(data[8 : 8 + length]), changes)).encode()
    with kept(path), works_or_refuses(folder, only=(WeightsError,)):
        path.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + length :])
        use(folder)


NAMES = ["resnet18", "test_byobnet.r160_in1k", "test_byobnet.nope", "vit_small_patch16_224", "hf-hub:timm/resnet18",
         "hf_hub:timm/resnet18", "local-dir:/tmp", "http://127.0.0.1:9/x", "../x", "", "[" * 50,
         "efficientformer_l1"]  # fmt: skip


@inputs(40)
@given(changes=tree_edits, name=st.sampled_from([None, None, *NAMES]))
def test_bent_descriptions(folder: Path, changes: list[tuple[str, int, int]], name: str | None) -> None:
    path = folder / META
    tree = json.loads(path.read_text())
    tree.pop("shapes")  # for the reader only
    tree = bent(tree, changes)
    if name is not None and isinstance(tree, dict) and isinstance(tree.get("model"), dict):
        tree["model"]["backbone"] = name
    with kept(path), works_or_refuses(folder, only=(WeightsError,)):
        path.write_text(json.dumps(tree))
        use(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"hidden": 10**12}}, "wider than"),
        ({"model": {"hidden": 2**20}}, r"embedding\.0\.weight is"),  # and no memory was asked for
        ({"model": {"backbone": "hf-hub:timm/resnet18"}}, "timm has no model"),
        ({"model": {"backbone": "vit_giant_patch14_224"}}, "model.safetensors|only takes images of some sizes"),
        ({"classes": 3}, "classes"),
        ({"heads": [["toy", n] for n in range(100_000)]}, "too few for 100000 nuisance heads"),
        ({"cameras": [["toy", 0]]}, r"camera_s\w+ is \(2, 8\), the model's \(1, 8\)"),
        ({"std": [0.0, 1.0, 1.0]}, "std"),
        ({"image": [10**9, 10**9]}, "image"),
    ],
)
def test_what_a_stranger_says_of_sizes_is_not_believed(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = folder / META
    tree = json.loads(path.read_text())
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    with kept(path):
        path.write_text(json.dumps(tree))
        with works_or_refuses(folder), pytest.raises(WeightsError, match=message):
            use(folder)


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


STAGE = {"parts": parts_in("frozen", "train"), "data": {"from": "sources", "P": 4, "K": 4}, "loss": {"triplet": {}},
         "epochs": 1}  # fmt: skip


def test_pickled_weights_run_no_code(tmp_path: Path) -> None:
    run, path = tmp_path / "ran", tmp_path / "weights.pth"
    stage = Stage.model_validate({"init": str(path), **STAGE})
    for save in (lambda content: torch.save(content, path), lambda content: path.write_bytes(pickle.dumps(content))):
        save({"weight": Runs(run)})
        with pytest.raises(WeightsError, match=r"stages\.s\.init: .*weights\.pth"):
            initial_model(KEYS, stage, StageStart("s", 0, tmp_path, Seen([("toy", 0)])))
        assert not run.exists()


@inputs(10)
@given(changes=edits)
def test_damaged_pickled_weights(folder: Path, changes: list[tuple[str, int, int]]) -> None:
    path = folder / "weights.pth"
    stage = Stage.model_validate({"init": str(path), **STAGE})
    torch.save(model(parts_in("train")).backbone.state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(damaged(data, changes, range(0, 3000) if changes[0][1] % 2 else None))
    with works_or_refuses(path, only=(WeightsError,)):
        initial_model(KEYS, stage, StageStart("s", 0, folder, Seen([("toy", 0)])))
