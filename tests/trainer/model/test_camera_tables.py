"""Statistics by camera: what each image goes through, and how the tables travel."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toy_models import KEYS, RECONSTRUCTION, TRIPLET, Seen, heads, images, model, parts_in, stage
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer.errors import WeightsError
from embae.trainer.model import saved as export
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.camera_tables import MEAN, SCALE, SHIFT, TABLES, VAR, has_table, without_tables
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.known_cameras import KnownCameras
from embae.trainer.model.saved import SavedModel
from embae.trainer.runs.stage_folder import StageCost, finish_stage
from embae.trainer.training.initial_model import StageStart, initial_model

CAMERAS = [("toy", 0), ("toy", 1), ("toy", 2)]
PARTS = parts_in("frozen", "frozen")
WHICH = torch.tensor([2, -1, 0, 0, 1, -1, 2])


def _random(like: Tensor, seed: int) -> Tensor:
    return 0.5 + torch.rand(like.shape, generator=torch.Generator().manual_seed(seed))


def _norms(made: EmbAE) -> list[_BatchNorm]:
    return [module for module in made.modules() if isinstance(module, _BatchNorm)]


def calibrated(
    parts: dict[str, str] = PARTS, *, norms: bool = True, affine: bool = True, nuisance: int = 0
) -> EmbAE:
    """A model with made-up tables for three cameras."""
    made = model(parts, heads(nuisance), cameras=CAMERAS).eval()
    use_global_batch_norm(made, sync=False)
    if norms:
        for number, norm in enumerate([*_norms_of(made.backbone), *_norms_of(getattr(made, "embedding", None))]):
            for name, value in ((MEAN, norm.running_mean), (VAR, norm.running_var)):
                assert value is not None
                rows = [value * _random(value, 10 * number + camera) for camera in range(3)]
                norm.register_buffer(name, torch.stack(rows))
    if affine:
        for number, (part, width) in enumerate(((made.backbone, made.features), (made.embedding, made.z))):
            part.register_buffer(SHIFT, 0.1 * _random(torch.empty(3, width), 100 + number))
            part.register_buffer(SCALE, _random(torch.empty(3, width), 200 + number))
    return made


def _norms_of(part: nn.Module | None) -> list[_BatchNorm]:
    return [] if part is None else [module for module in part.modules() if isinstance(module, _BatchNorm)]


def plain(made: EmbAE, camera: int) -> EmbAE:
    """The same network without tables, its running statistics those of one camera; −1 leaves the shared ones."""
    own = copy.deepcopy(made)
    for norm in _norms(own):
        if has_table(norm, MEAN):
            if camera >= 0:
                norm.running_mean, norm.running_var = norm.get_buffer(MEAN)[camera], norm.get_buffer(VAR)[camera]
            del norm.camera_mean, norm.camera_var
    return own


@torch.no_grad()
def test_batch_norm_by_camera_is_a_plain_network_for_each_image() -> None:
    made, inputs = calibrated(affine=False), images(len(WHICH))
    features, z = made.extract(inputs, WHICH), made(inputs, WHICH)
    for row, camera in enumerate(WHICH.tolist()):
        own = plain(made, camera)
        one = inputs[row:row + 1]
        torch.testing.assert_close(features[row:row + 1], own.extract(one), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(z[row:row + 1], own(one), rtol=1e-4, atol=1e-5)
    outs = [plain(made, camera)(inputs[:1]) for camera in (-1, 0, 1, 2)]
    assert all((a - b).norm() > 1e-2 * a.norm() for n, a in enumerate(outs) for b in outs[:n])  # they do differ


@torch.no_grad()
def test_it_is_exact_in_double_precision() -> None:
    made, inputs = calibrated(affine=False).double(), images(len(WHICH)).double()
    found = made(inputs, WHICH)
    wanted = torch.cat([plain(made, camera)(inputs[row:row + 1]) for row, camera in enumerate(WHICH.tolist())])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@torch.no_grad()
def test_features_and_embeddings_are_moved_then_scaled_by_their_camera() -> None:
    made, inputs = calibrated(norms=False), images(len(WHICH))
    own = plain(made, -1)
    features = own.backbone(inputs).clone()
    for row, camera in enumerate(WHICH.tolist()):
        if camera >= 0:
            part = made.backbone
            features[row] = (features[row] - part.get_buffer(SHIFT)[camera]) * part.get_buffer(SCALE)[camera]
    torch.testing.assert_close(made.extract(inputs, WHICH), features, rtol=1e-5, atol=1e-6)
    z = own.embedding(features).clone()
    for row, camera in enumerate(WHICH.tolist()):
        if camera >= 0:
            z[row] = (z[row] - made.embedding.get_buffer(SHIFT)[camera]) * made.embedding.get_buffer(SCALE)[camera]
    torch.testing.assert_close(made(inputs, WHICH), z, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.embed(features, WHICH), z, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_without_cameras_the_tables_are_not_used() -> None:
    made, inputs = calibrated(), images(6)
    assert torch.equal(made(inputs), plain(made, -1)(inputs))
    norm, own = (_norms(one)[0].train() for one in (made, plain(made, -1)))
    x, before = torch.randn(6, norm.num_features, 4, 4), norm.get_buffer(MEAN).clone()
    assert torch.equal(norm(x), own(x))
    assert torch.equal(norm.get_buffer(MEAN), before)


@torch.no_grad()
def test_an_image_does_not_depend_on_the_cameras_of_the_others() -> None:
    made, inputs = calibrated(), images(len(WHICH))
    found = made(inputs, WHICH)
    others = WHICH.clone()
    others[[0, 1, 3, 4]] = torch.tensor([0, 2, -1, 0])
    again = made(inputs, others)
    for row in (2, 5, 6):
        assert torch.equal(found[row], again[row])


@torch.no_grad()
def test_under_autocast_it_is_within_rounding() -> None:
    made, inputs = calibrated(), images(len(WHICH))
    exact = made(inputs, WHICH)
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(inputs, WHICH)
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_a_batch_says_which_cameras_its_images_are_of() -> None:
    from helpers.toy_models import ToyView, share_of

    view = ToyView([0] * 4, [1, 5, 0, 2])
    (batch,) = share_of(view, images(4), np.array([3, 1, 0, 2]), 0, 1)
    found = calibrated().image_cameras(batch)
    assert found is not None and found.tolist() == [2, -1, 1, 0]
    assert model(PARTS).image_cameras(batch) is None


def test_stale_tables_are_left_out_by_name() -> None:
    state = {"0.weight": torch.zeros(1), **{f"0.{name}": torch.zeros(1) for name in TABLES}, SHIFT: torch.zeros(1)}
    assert set(without_tables(state, keep_batch_norm=False)) == {"0.weight"}
    assert set(without_tables(state, keep_batch_norm=True)) == {"0.weight", f"0.{MEAN}", f"0.{VAR}"}


# Exports


def write(run: Path, made: EmbAE, name: str = "calibrate") -> Path:
    with finish_stage(run / name, StageCost(0, 1, 1.0)) as partial:
        export.write(partial, made, made.state_dict(), keys=KEYS, spec=ImageSpec(32, 16))
    return run / name / "export"


@pytest.mark.parametrize(("norms", "affine"), [(True, True), (True, False), (False, True)])
def test_an_export_brings_its_tables_back(tmp_path: Path, norms: bool, affine: bool) -> None:
    made = calibrated(norms=norms, affine=affine)
    opened = SavedModel.open(write(tmp_path, made))
    assert opened.cameras == CAMERAS
    back = opened.restore()
    assert back.cameras == CAMERAS
    assert back.state_dict().keys() == made.state_dict().keys()
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in made.state_dict().items())
    assert torch.equal(back(images(7), WHICH), made(images(7), WHICH))


def test_an_export_remembers_what_cameras_are_called(tmp_path: Path) -> None:
    made = calibrated()
    names = {CAMERAS[0]: "door", CAMERAS[2]: "Hall 2, left"}
    made.known_cameras = KnownCameras(made.known_cameras.cameras, names)
    folder = write(tmp_path, made)
    saved = SavedModel.open(folder)
    assert saved.known_cameras.names == names and saved.restore().known_cameras.names == names
    about = json.loads((folder / "model.json").read_text())
    for wrong in (["door"], ["door", "door", None], [1, 2, 3]):
        (folder / "model.json").write_text(json.dumps({**about, "names": wrong}))
        with pytest.raises(WeightsError, match="names"):
            SavedModel.open(folder)
    del about["names"]  # as exports were before
    (folder / "model.json").write_text(json.dumps(about))
    assert SavedModel.open(folder).cameras == CAMERAS and not SavedModel.open(folder).known_cameras.names


def test_an_export_without_tables_names_no_cameras(tmp_path: Path) -> None:
    made = calibrated(norms=False, affine=False)
    assert made.cameras == CAMERAS and SavedModel.open(write(tmp_path, made)).cameras == []


def tables(made: EmbAE) -> set[str]:
    """Parts that hold tables, with what kind."""
    return {f"{key.split('.')[0]} {'norms' if key.endswith((MEAN, VAR)) else 'put out'}"
            for key in made.state_dict() if key.rpartition(".")[2] in TABLES}


@pytest.mark.parametrize(
    ("embedding", "backbone", "running", "kept"),
    [
        ("frozen", "frozen", [], {"backbone norms", "backbone put out", "embedding norms", "embedding put out"}),
        ("train", "frozen", [], {"backbone norms", "backbone put out"}),
        ("train", "frozen", ["embedding"], {"backbone norms", "backbone put out", "embedding norms"}),
        ("train", "train", [], set()),
    ],
)
def test_a_part_that_trains_drops_its_tables_and_a_frozen_one_keeps_them(
    tmp_path: Path, embedding: str, backbone: str, running: list[str], kept: set[str]
) -> None:
    made = calibrated({**PARTS, "nuisance": "frozen", "decoder": "frozen"}, nuisance=3)
    write(tmp_path, made)
    uses = parts_in(backbone, embedding, "frozen", "train")
    keys = stage(uses, RECONSTRUCTION, init="calibrate", batch_norm=dict.fromkeys(running, "running"))
    found = initial_model(KEYS, keys, StageStart("now", 0, tmp_path, Seen(CAMERAS)))
    assert tables(found) == kept
    for key, value in found.state_dict().items():
        assert torch.equal(value, made.state_dict()[key]), key
    # What is trained from it says so too.
    opened = SavedModel.open(write(tmp_path, found, "now"))
    assert opened.cameras == (CAMERAS if kept else []) and tables(opened.restore()) == kept
    state = load_file(tmp_path / "now" / "export" / "model.safetensors")
    assert {key for key in state if key.rpartition(".")[2] in TABLES} == {
        key for key in found.state_dict() if key.rpartition(".")[2] in TABLES}  # fmt: skip


def test_a_part_that_starts_afresh_has_no_tables(tmp_path: Path) -> None:
    write(tmp_path, calibrated())
    keys = stage(parts_in("train", "train"), TRIPLET, init="calibrate", reinit=["embedding"])
    assert tables(initial_model(KEYS, keys, StageStart("now", 0, tmp_path, Seen(CAMERAS)))) == set()
    keys = keys.model_copy(update={"parts": parts_in("frozen", "train")})
    found = initial_model(KEYS, keys, StageStart("now", 0, tmp_path, Seen(CAMERAS)))
    assert tables(found) == {"backbone norms", "backbone put out"} and found.cameras == CAMERAS
