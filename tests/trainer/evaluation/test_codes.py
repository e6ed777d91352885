"""Probes on models whose codes are made to carry what they are asked for, over a real target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import noise_datasets
from helpers.toy_models import KEYS, heads
from torch import nn

from embae.datasets.sampling.view import View
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards
from embae.trainer.evaluation.codes import Codes, compute_codes, measure_codes
from embae.trainer.model.camera_tables import SCALE, SHIFT
from embae.trainer.model.domain import Head, ModelDomain
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.known_cameras import KnownCameras

CPU = torch.device("cpu")
WIDE = KEYS.model_copy(update={"embedding": 12, "hidden": 256,
                               "nuisance": KEYS.nuisance.model_copy(update={"dim": 12})})  # fmt: skip
CAMERAS: list[Head] = [("target", camid) for camid in range(3)]


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    return noise_datasets.target(noise_datasets.shards(tmp_path_factory.mktemp("shards")) / "labelled")


@pytest.fixture(scope="module")
def nulled(tmp_path_factory: pytest.TempPathFactory) -> View:
    records = [replace(record, pid=None) for record in noise_datasets.records(5000, 12, 12, 3)[:noise_datasets.TARGET]]
    return View(
        [
            write_shards(
                "target", records, tmp_path_factory.mktemp("nulled"), source={}, options=ShardOptions(workers=1)
            )
        ],
        "train",
    )


def features(view: View) -> np.ndarray:
    """`(images, 256)`: the camera one-hot in the first three values, the person in the twelve from 16 on, and noise."""
    rows = np.arange(len(view))
    found = np.zeros((len(view), 256), np.float32)
    found[rows, view.column("camid", rows)] = 1
    found[rows, 16 + view.column("pid", rows)] = 1
    found[:, 128:] = np.random.default_rng(0).random((len(view), 128), dtype=np.float32)
    return found


@torch.no_grad()
def passes_on(part: nn.Module, first: int, factor: float = 1.0) -> None:
    """Makes a head, (dense, ReLU, batch norm, dense), put out twelve of the features as they are, times a factor."""
    dense, _, norm, last = part  # type: ignore[misc]
    dense.weight.copy_(torch.eye(256))
    dense.bias.zero_()
    norm.running_var.fill_(1 - norm.eps)
    last.weight.copy_(factor * torch.eye(256)[first:first + 12])
    last.bias.zero_()


def made(
    *, z: int = 0, v: int = 16, labels: list[Head] = CAMERAS, decoder: bool = True, nuisance: bool = True
) -> EmbAE:
    """A model whose z and v are twelve features from there on, and whose decoder puts out zeros."""
    parts = {"backbone": "frozen", "embedding": "frozen", "nuisance": "frozen" if nuisance else "absent",
             "decoder": "frozen" if decoder else "absent"}
    model = EmbAE(WIDE, parts, ModelDomain(labels)).eval()  # type: ignore[arg-type]
    passes_on(model.embedding, z)
    if nuisance:
        for number, head in enumerate(model.nuisance.heads):
            passes_on(head, v, 1.0 + number)
    if decoder:
        for weight in model.decoder.parameters():
            nn.init.zeros_(weight)
    return model


def test_codes_are_what_the_model_makes_of_features(view: View) -> None:
    x, rows = features(view), np.arange(len(view))
    found = compute_codes(made(), view, x, CPU)
    camid = view.column("camid", rows)
    np.testing.assert_allclose(found.z, x[:, :12], atol=1e-5)
    assert found.v is not None and found.error is not None
    np.testing.assert_allclose(found.v, (1 + camid[:, None]) * x[:, 16:28], atol=1e-4)  # each by its camera's head
    np.testing.assert_allclose(found.error, (x**2).mean(1), rtol=1e-5)


@pytest.mark.parametrize("labels", [[()], [("other",), ("target",)], [*heads(2), *CAMERAS]], ids=str)
def test_heads_that_serve_the_target_are_found(view: View, labels: list[Head]) -> None:
    found = compute_codes(made(labels=labels), view, features(view), CPU)
    assert found.v is not None and found.v.shape == (noise_datasets.TARGET, 12)


@pytest.mark.parametrize("labels", [[("other",)], heads(3), CAMERAS[:2]], ids=str)
def test_heads_of_others_give_no_nuisance(view: View, labels: list[Head]) -> None:
    found = compute_codes(made(labels=labels), view, features(view), CPU)
    assert found.v is None and found.error is None and len(found.z) == noise_datasets.TARGET


def test_probes_find_what_codes_carry(view: View) -> None:
    found = measure_codes(compute_codes(made(), view, features(view), CPU), None, view, 0)
    assert found["camera from z"] > 0.95 and found["identity from v"] > 0.95
    assert found["identity from z"] < 0.3 and found["chance of identity"] == 1 / 12
    assert found["chance of camera"] == 1 / 3 and "moved" not in found
    swapped = measure_codes(compute_codes(made(z=16, v=0), view, features(view), CPU), None, view, 0)
    assert swapped["identity from z"] > 0.95 and swapped["camera from v"] > 0.95
    assert swapped["camera from z"] < 0.6  # a person says little of the camera


def test_noise_says_nothing(view: View) -> None:
    found = measure_codes(compute_codes(made(z=130, v=150, labels=[()]), view, features(view), CPU), None, view, 0)
    for name, chance in (("camera from z", 1 / 3), ("camera from v", 1 / 3), ("identity from v", 1 / 12)):
        assert abs(found[name] - chance) < 0.2, name


def test_errors_are_reported_by_camera(view: View) -> None:
    x, camid = features(view), view.column("camid", np.arange(len(view)))
    x[camid == 2] *= 3
    found = measure_codes(compute_codes(made(), view, x, CPU), None, view, 0)
    for camera in range(3):
        wanted = (x[camid == camera] ** 2).mean()
        assert found[f"reconstruction error of camera {camera}"] == pytest.approx(wanted, rel=1e-5)
    assert found["reconstruction error"] == pytest.approx((x**2).mean(), rel=1e-5)


def test_models_without_nuisance_or_decoder_are_measured_as_far_as_they_go(view: View) -> None:
    x = features(view)
    bare = measure_codes(compute_codes(made(nuisance=False, decoder=False), view, x, CPU), None, view, 0)
    assert set(bare) == {"camera from z", "chance of camera", "identity from z", "chance of identity"}
    blind = measure_codes(compute_codes(made(decoder=False), view, x, CPU), None, view, 0)
    assert set(blind) == {*bare, "camera from v", "identity from v"}
    assert compute_codes(made(decoder=False), view, x, CPU).error is None


def test_how_far_z_moved(view: View) -> None:
    x = features(view)
    start = compute_codes(made(), view, x, CPU)
    assert measure_codes(start, start, view, 0)["moved"] == 0
    own = made()
    passes_on(own.embedding, 0, 1.5)
    assert measure_codes(compute_codes(own, view, x, CPU), start, view, 0)["moved"] == pytest.approx(0.5, abs=1e-4)
    assert "moved" not in measure_codes(start, Codes(start.z[:, :5]), view, 0)  # of another width


def test_a_target_without_labels_is_asked_for_cameras_alone(view: View, nulled: View) -> None:
    x = np.zeros((len(nulled), 256), np.float32)
    x[np.arange(len(nulled)), nulled.column("camid", np.arange(len(nulled)))] = 1
    found = measure_codes(compute_codes(made(), nulled, x, CPU), None, nulled, 0)
    assert found["camera from z"] > 0.95 and not any("identity" in name for name in found)


def test_what_cannot_be_asked_is_left_out(tmp_path: Path) -> None:
    """JSON knows no NaN: of one camera there is nothing to tell."""
    records = [record for record in noise_datasets.records(0, 12, 12, 3) if record.camid == 0]
    view = View([write_shards("target", records, tmp_path, source={}, options=ShardOptions(workers=1))], "train")
    found = measure_codes(compute_codes(made(labels=CAMERAS[:1]), view, features(view), CPU), None, view, 0)
    assert "camera from z" not in found and not any(np.isnan(value) for value in found.values())
    assert found["identity from v"] > 0.95


def test_calibrated_embeddings_are_those_of_their_camera(view: View) -> None:
    x, camid = features(view), view.column("camid", np.arange(len(view)))
    model = made()
    model.known_cameras = KnownCameras([("target", 0), ("target", 1), ("target", 2)])
    model.embedding.register_buffer(SHIFT, torch.arange(36.0).view(3, 12))
    model.embedding.register_buffer(SCALE, torch.tensor([1.0, 2.0, 3.0])[:, None].expand(3, 12).contiguous())
    found = compute_codes(model, view, x, CPU).z
    wanted = (x[:, :12] - np.arange(36).reshape(3, 12)[camid]) * (1 + camid[:, None])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_many_images_go_in_chunks(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    from embae.trainer.evaluation import codes

    whole = compute_codes(made(), view, features(view), CPU)
    monkeypatch.setattr(codes, "CHUNK", 10)
    chunks = compute_codes(made(), view, features(view), CPU)
    for name in ("z", "v", "error"):
        np.testing.assert_allclose(getattr(chunks, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
