"""Calibration over real shards: the statistics are those of the images that it was shown, camera by camera."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from small import SIZE, shared_shards, target
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from toys import heads, model, parts_in

from embae.datasets.augment import ImageSpec
from embae.datasets.plan import by_content
from embae.trainer.cameras import MEAN, SCALE, SHIFT, VAR
from embae.trainer.distributed import World
from embae.trainer.errors import ExportError
from embae.trainer.evaluate import Reading
from embae.trainer.parts import EmbAE
from embae.trainer.pass_keys import Calibrate

SPEC, BATCH = ImageSpec(*SIZE), 16
CAMERAS = [("target", 0), ("target", 1), ("target", 2)]
KINDS = {
    "by camera": [{"what": "batch-norm"}],
    "by dataset": [{"what": "batch-norm", "per": "dataset"}],
    "features": [{"what": "features"}],
    "embedding": [{"what": "embedding"}],
    "by camera, then embedding": [{"what": "batch-norm"}, {"what": "embedding"}],
    "by camera, then by dataset": [{"what": "batch-norm"}, {"what": "batch-norm", "per": "dataset"}],
    "features, then by camera": [{"what": "features"}, {"what": "batch-norm"}],
}
NORMS = [kind for kind, steps in KINDS.items() if all(step["what"] == "batch-norm" for step in steps)]


def fresh() -> EmbAE:
    return model(parts_in("frozen", "frozen", "frozen"), heads(2)).eval()


@on_ranks(1, 2)
def calibrations(world: World, folder: Path) -> dict[str, Any]:
    """The model's state after each kind of calibration on each of the targets; on one rank also the images."""
    from embae.trainer.calibration import calibrate
    from embae.trainer.features import extract

    root, reading = shared_shards(world, folder), Reading("webdataset", 1, BATCH)
    found: dict[str, Any] = {}
    for name in ("labelled", "nulled", "fewer"):
        view = target(root / name)
        for kind, steps in KINDS.items():
            made = fresh()
            for keys in steps:
                calibrate(made, Calibrate.model_validate(keys), view, SPEC, world, reading)
            assert not any(module.training for module in made.modules())
            found[f"{name} {kind}"] = {"state": made.state_dict(), "cameras": made.cameras,
                                       "momentum": {norm.momentum for norm in norms(made).values()}}
        if world.world_size == 1:
            every = np.arange(len(view))
            pieces = extract(view, every, SPEC, world.device, loader="webdataset", threads=1)
            found[name] = {"images": torch.cat([batch.inputs for batch in pieces]),
                           "order": torch.from_numpy(by_content(view)),
                           "camera": torch.from_numpy(view.column("camid", every))}
    made = fresh()
    made.cameras = [("other", 0)]
    try:
        calibrate(made, Calibrate(what="embedding"), target(root / "labelled"), SPEC, world, reading)
    except ExportError as error:
        found["refused"] = str(error)
    return found


def norms(made: EmbAE) -> dict[str, _BatchNorm]:
    """The batch norms that images go through to their embedding."""
    return {name: module for name, module in made.named_modules()
            if isinstance(module, _BatchNorm) and name.startswith(("backbone", "embedding"))}


@pytest.fixture(scope="module")
def one(computed: Callable[..., Any]) -> dict[str, Any]:
    """What one rank found."""
    return computed(calibrations, 1)[0]


@torch.no_grad()
def statistics(images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of every batch norm of a network in training mode, over its batches weighted by images."""
    totals: dict[str, tuple[Tensor, Tensor]] = {}
    for start in range(0, len(images), BATCH):
        made, batch = fresh().double(), images[start:start + BATCH].double()
        for norm in norms(made).values():
            norm.train().momentum = 1.0
        made.embedding(made.backbone(batch))
        for name, norm in norms(made).items():
            before = totals.get(name, (0.0, 0.0))
            assert norm.running_mean is not None and norm.running_var is not None
            share = len(batch) / len(images)
            totals[name] = before[0] + share * norm.running_mean, before[1] + share * norm.running_var
    return totals


@pytest.mark.parametrize("name", ["labelled", "nulled", "fewer"])
def test_statistics_by_camera_are_those_of_training_mode_on_its_images(one: dict[str, Any], name: str) -> None:
    data, found = one[name], one[f"{name} by camera"]
    assert found["cameras"] == CAMERAS
    images, camera = data["images"][data["order"]], data["camera"][data["order"]]
    for number in (0, 2) if name == "fewer" else (0, 1, 2):
        wanted = statistics(images[camera == number])
        assert len(wanted) == 15
        for norm, (mean, var) in wanted.items():
            torch.testing.assert_close(found["state"][f"{norm}.{MEAN}"][number].double(), mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found["state"][f"{norm}.{VAR}"][number].double(), var, rtol=1e-4, atol=1e-5)


def test_statistics_of_the_whole_target_are_those_of_training_mode(one: dict[str, Any]) -> None:
    data, found = one["labelled"], one["labelled by dataset"]
    for norm, (mean, var) in statistics(data["images"][data["order"]]).items():
        torch.testing.assert_close(found["state"][f"{norm}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["state"][f"{norm}.running_var"].double(), var, rtol=1e-4, atol=1e-5)
    assert found["cameras"] == [] and found["state"].keys() == fresh().state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_of_the_model_changes(one: dict[str, Any], kind: str) -> None:
    before, found = fresh().state_dict(), one[f"labelled {kind}"]
    assert found["momentum"] == {norm.momentum for norm in norms(fresh()).values()}
    own = {f"{name}.running_{what}" for name in norms(fresh()) for what in ("mean", "var")} if "dataset" in kind else ()
    for key, value in before.items():
        assert torch.equal(value, found["state"][key]) != (key in own), key


def test_images_of_one_camera_never_touch_anothers_statistics(one: dict[str, Any]) -> None:
    all_of_them, fewer = one["labelled by camera"]["state"], one["fewer by camera"]["state"]
    for key, value in all_of_them.items():
        if key.endswith((MEAN, VAR)):
            assert torch.equal(value[[0, 2]], fewer[key][[0, 2]]), key
            assert not torch.equal(value[1], fewer[key][1]) or "embedding" in key


@pytest.mark.parametrize("kind", KINDS)
def test_a_camera_with_a_single_image_gives_finite_numbers(one: dict[str, Any], kind: str) -> None:
    assert (one["fewer"]["camera"] == 1).sum() == 1
    for key, value in one[f"fewer {kind}"]["state"].items():
        assert torch.isfinite(value).all(), key
        if key.endswith(VAR):
            assert (value >= 0).all(), key
    with torch.no_grad():
        assert torch.isfinite(restored(one, "fewer", kind)(*inputs(one, "fewer"))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_do_not_change_the_statistics(computed: Callable[..., Any], one: dict[str, Any], kind: str) -> None:
    for name in ("labelled", "fewer"):
        for rank in computed(calibrations, 2):
            state = rank[f"{name} {kind}"]["state"]
            assert state.keys() == one[f"{name} {kind}"]["state"].keys()
            for key, value in one[f"{name} {kind}"]["state"].items():
                if kind in NORMS:  # bit for bit, since a rank takes whole cameras
                    assert torch.equal(value, state[key]), key
                else:
                    torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-5)
        first, second = (rank[f"{name} {kind}"]["state"] for rank in computed(calibrations, 2))
        assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_the_target_do_not_reach_the_statistics(one: dict[str, Any], kind: str) -> None:
    assert not torch.equal(one["labelled"]["images"], one["nulled"]["images"])  # another order
    labelled, nulled = (one[f"{name} {kind}"]["state"] for name in ("labelled", "nulled"))
    assert labelled.keys() == nulled.keys()
    for key, value in labelled.items():
        assert torch.equal(value, nulled[key]), key


def restored(found: dict[str, Any], name: str, kind: str) -> EmbAE:
    from embae.trainer.export import load_into

    made = model(parts_in("frozen", "frozen", "frozen"), heads(2), cameras=CAMERAS)
    load_into(made, found[f"{name} {kind}"]["state"], "here")
    return made.eval()


def inputs(found: dict[str, Any], name: str) -> tuple[Tensor, Tensor]:
    return found[name]["images"], found[name]["camera"]


@torch.no_grad()
def test_features_of_each_camera_have_mean_and_deviation_of_all(one: dict[str, Any]) -> None:
    images, camera = inputs(one, "labelled")
    before = fresh().extract(images).double()
    after = restored(one, "labelled", "features").extract(images, camera).double()
    usual = before.std(0, correction=0)  # what varies much less on a camera is only moved
    varies = torch.stack([before[camera == c].std(0, correction=0) > 0.01 * usual for c in range(3)]).all(0)
    assert varies.float().mean() > 0.5
    shifted = [(before[camera == c].mean(0) - before.mean(0)).norm() for c in range(3)]
    assert min(shifted) > 0.01 * before.mean(0).norm()  # there was something to do
    for number in range(3):
        own = after[camera == number]
        torch.testing.assert_close(own.mean(0), before.mean(0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(own.std(0, correction=0)[varies], before.std(0, correction=0)[varies], rtol=1e-3,
                                   atol=1e-5)


@torch.no_grad()
def test_features_of_a_camera_with_one_image_are_only_moved(one: dict[str, Any]) -> None:
    state = one["fewer features"]["state"]
    assert torch.equal(state[f"backbone.{SCALE}"][1], torch.ones(256))
    images, camera = inputs(one, "fewer")
    before = fresh().extract(images).double()
    (alone,) = restored(one, "fewer", "features").extract(images, camera)[camera == 1].double()
    torch.testing.assert_close(alone, before.mean(0), rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["embedding", "by camera, then embedding"])
def test_embeddings_of_each_camera_have_the_mean_zero(one: dict[str, Any], kind: str) -> None:
    images, camera = inputs(one, "labelled")
    made = restored(one, "labelled", kind)
    z, plain = made(images, camera), made(images)
    for number in range(3):
        assert z[camera == number].mean(0).norm() < 1e-4 * plain[camera == number].mean(0).norm()
    assert torch.equal(one[f"labelled {kind}"]["state"][f"embedding.{SCALE}"], torch.ones(3, 8))
    if kind == "embedding":  # and are moved alone
        for number in range(3):
            own = plain[camera == number]
            torch.testing.assert_close(z[camera == number], own - own.mean(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_last_calibration_is_what_images_go_through(one: dict[str, Any]) -> None:
    """Batch norm of the whole target after that of each camera is that of the whole target, whoever looks."""
    images, camera = inputs(one, "labelled")
    found = restored(one, "labelled", "by camera, then by dataset")(images, camera)
    torch.testing.assert_close(found, restored(one, "labelled", "by dataset")(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_was_taken_behind_other_batch_norms_is_dropped(one: dict[str, Any]) -> None:
    images, camera = inputs(one, "labelled")
    found = restored(one, "labelled", "features, then by camera")(images, camera)
    torch.testing.assert_close(found, restored(one, "labelled", "by camera")(images, camera), rtol=1e-4, atol=1e-5)


def test_a_model_of_other_cameras_is_refused(one: dict[str, Any]) -> None:
    assert one["refused"] == ("the model is calibrated on the cameras 0 of other, not on 0 of target, 1 of target, "
                              "2 of target")


def test_shown_alone_or_with_others_an_image_goes_through_its_cameras_statistics(one: dict[str, Any]) -> None:
    images, camera = inputs(one, "labelled")
    made = restored(one, "labelled", "by camera")
    own = copy.deepcopy(made)
    for norm in norms(own).values():
        norm.running_mean, norm.running_var = norm.get_buffer(MEAN)[2], norm.get_buffer(VAR)[2]
    with torch.no_grad():
        found = made(images, camera)[camera == 2]
        torch.testing.assert_close(found, own(images[camera == 2]), rtol=1e-4, atol=1e-5)
        shared = made(images, torch.full_like(camera, -1))
        torch.testing.assert_close(shared, fresh()(images), rtol=1e-4, atol=1e-5)  # of a camera that it does not know
    assert SHIFT not in "".join(made.state_dict())
