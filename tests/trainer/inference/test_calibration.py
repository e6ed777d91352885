"""Calibration over real shards: the statistics are those of the images that it was shown, camera by camera."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.noise_datasets import SIZE, shared_shards, target
from helpers.ranks import on_ranks
from helpers.toy_models import KEYS, heads, model, parts_in
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.sampling.content_order import order_by_content
from embae.datasets.sampling.view import View
from embae.trainer.errors import WeightsError
from embae.trainer.inference.options import Inference, Reading
from embae.trainer.model.camera_tables import COMMON, MEAN, SCALE, SHIFT, VAR
from embae.trainer.model.embae import EmbAE
from embae.trainer.recipe.calibration import Calibrate
from embae.trainer.runtime.distributed import World

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
    from embae.trainer.inference.batches import read_batches
    from embae.trainer.inference.calibration import calibrate

    root, reading = shared_shards(world, folder), Reading("webdataset", 1, BATCH)
    inference = Inference(SPEC, world, folder, reading)
    found: dict[str, Any] = {}
    for name in ("labelled", "nulled", "fewer"):
        view = target(root / name)
        for kind, steps in KINDS.items():
            made = fresh()
            for keys in steps:
                calibrate(made, Calibrate.model_validate(keys), view, inference)
            assert not any(module.training for module in made.modules())
            found[f"{name} {kind}"] = {"state": made.state_dict(), "cameras": made.cameras,
                                       "momentum": {norm.momentum for norm in norms(made).values()}}
        if world.world_size == 1:
            every = np.arange(len(view))
            pieces = read_batches(view, every, SPEC, Reading("webdataset", 1, 128), world.device)
            found[name] = {"images": torch.cat([batch.inputs for batch in pieces]),
                           "order": torch.from_numpy(order_by_content(view)),
                           "camera": torch.from_numpy(view.column("camid", every))}
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


def mixed(mean: Tensor, var: Tensor, images: int, usual_mean: Tensor, usual_var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of images and 32 usual ones, by their moments."""
    share = images / (32 + images)
    first = share * mean + (1 - share) * usual_mean
    second = share * (var + mean ** 2) + (1 - share) * (usual_var + usual_mean ** 2)
    return first, second - first ** 2


def with_shared(found: dict[str, tuple[Tensor, Tensor]], images: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Statistics of so many images mixed with those of the model as it was."""
    shared = {name: (norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double())
              for name, norm in norms(fresh()).items()}
    return {name: mixed(*values, images, *shared[name]) for name, values in found.items()}


@pytest.mark.parametrize("name", ["labelled", "nulled", "fewer"])
def test_statistics_by_camera_are_those_of_training_mode_on_its_images_and_32_shared(
    one: dict[str, Any], name: str
) -> None:
    data, found = one[name], one[f"{name} by camera"]
    assert found["cameras"] == CAMERAS
    images, camera = data["images"][data["order"]], data["camera"][data["order"]]
    for number in (0, 2) if name == "fewer" else (0, 1, 2):
        wanted = with_shared(statistics(images[camera == number]), int((camera == number).sum()))
        assert len(wanted) == 15
        for norm, (mean, var) in wanted.items():
            torch.testing.assert_close(found["state"][f"{norm}.{MEAN}"][number].double(), mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found["state"][f"{norm}.{VAR}"][number].double(), var, rtol=1e-4, atol=1e-5)


def test_statistics_of_the_whole_target_are_those_of_training_mode_and_32_shared(one: dict[str, Any]) -> None:
    data, found = one["labelled"], one["labelled by dataset"]
    wanted = with_shared(statistics(data["images"][data["order"]]), len(data["images"]))
    for norm, (mean, var) in wanted.items():
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
    from embae.trainer.model.saved import load_into

    made = model(parts_in("frozen", "frozen", "frozen"), heads(2), cameras=CAMERAS)
    load_into(made, found[f"{name} {kind}"]["state"], "here")
    return made.eval()


def inputs(found: dict[str, Any], name: str) -> tuple[Tensor, Tensor]:
    return found[name]["images"], found[name]["camera"]


def standardised(own: Tensor, common: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
    """A camera's features of the mean and deviation that they are to have, where it is like the 32 common ones."""
    mean, var = mixed(own.mean(0), own.var(0, correction=0), len(own), common[0], common[1] ** 2)
    return (own - mean) * torch.where(common[1] > 1e-6, to[1] / var.sqrt(), 1.0) + to[0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["labelled", "fewer"])
def test_features_of_each_camera_have_mean_and_deviation_of_all(one: dict[str, Any], name: str) -> None:
    images, camera = inputs(one, name)
    before = fresh().extract(images).double()
    after = restored(one, name, "features").extract(images, camera).double()
    common = before.mean(0), before.std(0, correction=0)
    assert (common[1] > 1e-6).float().mean() > 0.5
    for number in range(3):  # of fewer, one has a single image
        wanted = standardised(before[camera == number], common, common)
        torch.testing.assert_close(after[camera == number], wanted, rtol=1e-3, atol=1e-4)
        if name == "labelled":
            apart = [(found[camera == number].mean(0) - common[0]).norm() for found in (before, after)]
            assert apart[1] < apart[0] > 0.01 * common[0].norm()  # there was something to do


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


class Of(View):
    """The images of some of a view's cameras."""

    def __init__(self, view: View, cameras: tuple[int, ...]):
        super().__init__(view.indexes, "train")
        self._cameras = cameras
        self._chosen = np.flatnonzero(np.isin(view.column("camid", np.arange(len(view))), cameras))

    def __len__(self) -> int:
        return len(self._chosen)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().locate(self._chosen[rows])

    def fingerprints(self) -> np.ndarray:
        return super().fingerprints()[self._chosen]

    def cameras(self) -> list[tuple[str, int]]:
        return [camera for camera in super().cameras() if camera[1] in self._cameras]


SERIES = {
    "together": ((0, 1, 2),),
    "two": ((0, 1),),
    "and one": ((0, 1), (2,)),
    "one first": ((2,), (0, 1)),
    "one again": ((0, 2), (2, 1)),
}


@on_ranks(1)
def additions(world: World, folder: Path) -> dict[str, Any]:
    """The model's state after cameras came one after the other; what is refused."""
    from embae.trainer.inference.calibration import calibrate

    view = target(shared_shards(world, folder) / "labelled")
    inference = Inference(SPEC, world, folder, Reading("webdataset", 1, BATCH))

    def put(made: EmbAE, what: str, cameras: tuple[int, ...]) -> EmbAE:
        calibrate(made, Calibrate.model_validate({"what": what}), Of(view, cameras), inference)
        return made

    found: dict[str, Any] = {}
    for what in ("batch-norm", "features", "embedding"):
        for name, series in SERIES.items():
            made = fresh()
            for cameras in series:
                put(made, what, cameras)
            found[f"{what} {name}"] = {"state": made.state_dict(), "cameras": made.cameras}
    made = put(put(fresh(), "batch-norm", (0, 1)), "features", (0, 1))
    found["before"] = copy.deepcopy(made.state_dict())
    found["after"] = put(made, "batch-norm", (1,)).state_dict()
    alone = model(parts_in("frozen")).eval()
    alone.load_state_dict(fresh().state_dict(), strict=False)
    found["alone"] = put(put(alone, "features", (0, 1)), "features", (2,)).state_dict()
    old = put(fresh(), "features", (0, 1))
    del old.backbone.camera_common  # exports were so
    none = EmbAE(KEYS.model_copy(update={"backbone": "test_convnext"}), {"backbone": "frozen"}).eval()
    for name, made, what in (("old", old, "features"), ("none", none, "batch-norm")):
        try:
            put(made, what, (2,))
        except WeightsError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module")
def added(computed: Callable[..., Any]) -> dict[str, Any]:
    """What one rank found."""
    return computed(additions, 1)[0]


@pytest.mark.parametrize("name", ["and one", "one first", "one again"])
def test_batch_norm_is_the_same_whichever_way_cameras_come(added: dict[str, Any], name: str) -> None:
    found, wanted = added[f"batch-norm {name}"], added["batch-norm together"]
    assert found["cameras"] == wanted["cameras"] == CAMERAS
    assert found["state"].keys() == wanted["state"].keys()
    for key, value in wanted["state"].items():
        assert torch.equal(value, found["state"][key]), key


@pytest.mark.parametrize("what", ["batch-norm", "features", "embedding"])
def test_what_other_cameras_have_stays_bit_for_bit(added: dict[str, Any], what: str) -> None:
    before, after = added[f"{what} two"], added[f"{what} and one"]
    assert (before["cameras"], after["cameras"]) == (CAMERAS[:2], CAMERAS)
    assert before["state"].keys() == after["state"].keys()
    grown = [key for key, value in before["state"].items() if value.shape != after["state"][key].shape]
    assert grown
    for key, value in before["state"].items():
        assert torch.equal(value, after["state"][key][:2] if key in grown else after["state"][key]), key


@torch.no_grad()
def test_features_of_an_added_camera_have_the_mean_and_deviation_of_those_before(
    one: dict[str, Any], added: dict[str, Any]
) -> None:
    images, camera = inputs(one, "labelled")
    plain = fresh().extract(images).double()
    others, own = plain[camera != 2], plain[camera == 2]
    mean, spread = added["features and one"]["state"][f"backbone.{COMMON}"].double()
    torch.testing.assert_close(mean, others.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spread, others.std(0, correction=0), rtol=1e-4, atol=1e-5)
    found = restored(added, "features", "and one").extract(images, camera)[camera == 2].double()
    torch.testing.assert_close(found, standardised(own, (mean, spread), (mean, spread)), rtol=1e-3, atol=1e-4)
    together = added["features together"]["state"][f"backbone.{COMMON}"].double()
    assert not torch.allclose(together[0], mean, rtol=1e-3)  # of all three they are others


@torch.no_grad()
def test_features_without_an_embedding_move_to_mean_0_and_deviation_1(
    one: dict[str, Any], added: dict[str, Any]
) -> None:
    from embae.trainer.model.saved import load_into

    images, camera = inputs(one, "labelled")
    made = model(parts_in("frozen"), cameras=CAMERAS).eval()
    load_into(made, added["alone"], "here")
    plain = fresh().extract(images).double()
    others = plain[camera != 2]
    common, to = (others.mean(0), others.std(0, correction=0)), (torch.zeros(256), torch.ones(256))
    for number in range(3):  # the last came later
        own = plain[camera == number]
        torch.testing.assert_close(made.extract(images, camera)[camera == number].double(),
                                   standardised(own, common, to), rtol=1e-3, atol=1e-3)


def test_features_are_taken_back_of_a_camera_whose_batch_norms_change(added: dict[str, Any]) -> None:
    before, after = added["before"], added["after"]
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key.endswith((SHIFT, SCALE)):
            assert torch.equal(after[key][0], value[0]) and not torch.equal(after[key][1], value[1])
            assert torch.equal(after[key][1], torch.full_like(value[1], float(key.endswith(SCALE))))
        else:  # the same images give the same statistics
            assert torch.equal(after[key], value), key


def test_features_that_were_moved_nobody_knows_whereto_take_no_camera_more(added: dict[str, Any]) -> None:
    assert ("does not store the mean and deviation that they were moved to; calibrate all cameras again, together"
            in added["old"])


def test_a_model_without_batch_norm_is_refused(added: dict[str, Any]) -> None:
    assert added["none"].startswith("the model has no batch norm")


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
