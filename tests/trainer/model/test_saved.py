"""Exports come back as they were written, and what is not a whole export is said to be none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.toy_models import KEYS, NECK, heads, images, model, parts_in

from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer.errors import WeightsError
from embae.trainer.model import saved as export
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.saved import META, WEIGHTS, SavedModel
from embae.trainer.recipe.model import Model
from embae.trainer.runs import stage_folder

SPEC = ImageSpec(32, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
FOUR = ["backbone", "embedding", "nuisance", "decoder"]


def _write(folder: Path) -> EmbAE:
    made = model(parts_in("train", "train", "train", "train"), heads(3)).eval()
    with stage_folder.finish_stage(folder, stage_folder.StageCost(17, 34, 1.5)) as partial:
        export.write(partial, made, made.state_dict(), keys=KEYS, spec=SPEC)
    return made


def test_round_trip(tmp_path: Path) -> None:
    made = _write(tmp_path / "stage")
    found = SavedModel.open(tmp_path / "stage" / "export")
    assert (found.model, found.spec, found.parts, found.heads) == (KEYS, SPEC, FOUR, heads(3))
    back = found.restore()
    assert list(back.state_dict()) == list(made.state_dict())
    for key, value in made.state_dict().items():
        assert torch.equal(back.state_dict()[key], value) and back.state_dict()[key].dtype == value.dtype, key
    assert torch.equal(back(images(2)), made(images(2)))
    assert not any(module.training for module in back.modules())
    assert not any(weight.requires_grad for weight in back.parameters())
    assert stage_folder.is_done(tmp_path, "stage")
    assert stage_folder.read_cost(tmp_path, "stage") == stage_folder.StageCost(17, 34, 1.5)


def test_an_export_says_how_a_model_pools_and_ends(tmp_path: Path) -> None:
    parts = {**parts_in("train", "train"), "classifier": "train"}
    made = model(parts, of=NECK, classes=3).eval()
    torch.nn.init.constant_(made.backbone.head.global_pool.p, 2.5)
    export.write(tmp_path, made, made.state_dict(), keys=NECK, spec=SPEC)
    back = SavedModel.open(tmp_path).restore()
    assert SavedModel.open(tmp_path).model == NECK
    assert torch.equal(back(images(2)), made(images(2))) and back.classifier.bias is None


def test_an_export_of_before_has_todays_defaults(tmp_path: Path) -> None:
    made = _write(tmp_path)
    path = tmp_path / "export" / META
    found = json.loads(path.read_text())
    for key in ("pooling", "last_stride", "head", "unit"):
        del found["model"][key]
    path.write_text(json.dumps(found))
    opened = SavedModel.open(tmp_path / "export")
    assert opened.model == KEYS and torch.equal(opened.restore()(images(2)), made(images(2)))


def test_a_transformer_comes_back_at_its_own_size(tmp_path: Path) -> None:
    keys = Model(backbone="test_vit", embedding=8, hidden=16)
    made = EmbAE(keys, {"backbone": "train", "embedding": "train"}, size=SPEC.size).eval()
    export.write(tmp_path, made, made.state_dict(), keys=keys, spec=SPEC)
    back = SavedModel.open(tmp_path).restore()
    assert torch.equal(back(images(2, size=SPEC.size)), made(images(2, size=SPEC.size)))


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _write(tmp_path / name)
    for file in (META, WEIGHTS):
        assert (tmp_path / "a" / "export" / file).read_bytes() == (tmp_path / "b" / "export" / file).read_bytes()


def test_a_half_written_export_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            _write(tmp_path / "stage")
    assert not (tmp_path / "stage" / "export").exists() and not stage_folder.is_done(tmp_path, "stage")
    with monkeypatch.context() as patch:  # whole, but killed before it was marked
        patch.setattr(stage_folder, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            _write(tmp_path / "stage")
    assert not stage_folder.is_done(tmp_path, "stage")
    _write(tmp_path / "stage")
    assert stage_folder.is_done(tmp_path, "stage")
    assert sorted(path.name for path in (tmp_path / "stage").iterdir()) == ["done", "export"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (META, None, "model.json is missing"),
        (META, b"{", "cannot be read"),
        (META, b"[" * 100_000, "cannot be read"),
        (META, b"\xff\xfe", "cannot be read"),
        (META, b"[]", "found format None, expected 1"),
        (META, b'{"format": 2}', "found format 2, expected 1"),
        (META, b'{"format": 1, "parts": ["backbone"]}', "not the description of a model"),
        (WEIGHTS, None, "no such file"),
        (WEIGHTS, b"", "not a whole safetensors file"),
        (WEIGHTS, b"cut", "not a whole safetensors file"),
    ],
)
def test_damage_is_named(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    _write(tmp_path)
    path = tmp_path / "export" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5] if content == b"cut" else content)
    with pytest.raises(WeightsError, match=message) as caught:
        SavedModel.open(tmp_path / "export").restore()
    assert str(path if content is not None or file == WEIGHTS else path.parent) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parts", 3),
        ("image", "big"),
        ("image", [32]),
        ("mean", None),
        ("heads", [3]),
        ("model", {"backbone": 1}),
        ("parts", None),
        ("model", {"backbone": "no_such_model"}),
    ],
)
def test_a_description_with_a_wrong_value_is_named(tmp_path: Path, key: str, value: object) -> None:
    _write(tmp_path)
    path = tmp_path / "export" / META
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(WeightsError, match=r"model\.json"):
        SavedModel.open(tmp_path / "export").restore()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    made = _write(tmp_path)
    state = {key: value for key, value in made.state_dict().items() if not key.startswith("decoder.0")}
    with pytest.raises(WeightsError, match=r"here: does not have decoder\.0\.weight; does not have decoder\.0\.bias"):
        export.load_into(made, state, "here")
    before = made.state_dict()["embedding.0.bias"].clone()
    state = {**made.state_dict(), "embedding.0.bias": torch.zeros(3), "stranger": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"stranger.*embedding\.0\.bias is \(3,\), the model's \(16,\)"):
        export.load_into(made, state, "here")
    assert torch.equal(made.state_dict()["embedding.0.bias"], before)
