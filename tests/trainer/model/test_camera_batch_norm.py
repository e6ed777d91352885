"""Batch norm by camera in training is a loop of torch's batch norm over cameras, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.noise_datasets import SIZE, shared_shards, target
from helpers.ranks import on_ranks
from helpers.toy_models import KEYS, RECONSTRUCTION, Seen, ToyView, distance, images, model, parts_in, share_of, stage
from torch import Tensor, nn

from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer.inference.options import Inference, Reading
from embae.trainer.model import saved as export
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.camera_tables import MEAN, TABLES, VAR, extend_tables, using_cameras, with_batch_cameras
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.known_cameras import KnownCameras
from embae.trainer.model.saved import SavedModel
from embae.trainer.runs.stage_folder import StageCost, finish_stage
from embae.trainer.runtime.distributed import World
from embae.trainer.training.initial_model import StageStart, initial_model
from embae.trainer.training.objective import Objective

CHANNELS, CAMERAS = 4, 5
# Camera 1 has a single image, which is a single value in one dimension; nobody is seen by 2 and 4.
WHICH = torch.tensor([3, 0, 0, 3, 1, 0, 3, 0])
SHAPES = {"1d": (), "2d": (3, 2), "channels last": (3, 2)}
SPLITS = {1: [(8,)], 2: [(4, 4), (8, 0), (1, 7)], 4: [(2, 2, 2, 2), (3, 0, 1, 4)]}


def _norm(kind: str) -> Any:
    norm = (nn.BatchNorm1d if kind == "1d" else nn.BatchNorm2d)(CHANNELS, momentum=0.3).double()
    extend_tables(norm, CAMERAS, trains=True)
    random = torch.Generator().manual_seed(7)
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape, generator=random, dtype=torch.float64))
    use_global_batch_norm(norm, sync=True)
    return norm.train()


def _rows(kind: str) -> tuple[Tensor, Tensor]:
    """Inputs whose cameras differ in mean and spread, and the gradient of the output."""
    random = torch.Generator().manual_seed(3)
    shape = (len(WHICH), CHANNELS, *SHAPES[kind])
    x, grad = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    own = (1.0 + WHICH).view(-1, *[1] * (len(shape) - 1))
    x = x * own + 3 * own
    return (x.contiguous(memory_format=torch.channels_last) if kind == "channels last" else x), grad


def _pass(norm: Any, x: Tensor, grad: Tensor, which: Tensor = WHICH, present: Tensor | None = None) -> dict[str, Any]:
    norm.zero_grad()
    x = x.detach().requires_grad_()
    with using_cameras(which), with_batch_cameras(present):
        out = norm(x)
    out.backward(grad)
    return {"out": out.detach(), "x": x.grad, "weight.grad": norm.weight.grad, "bias.grad": norm.bias.grad,
            **{name: value.clone() for name, value in norm.named_buffers()}}


def _loop(norm: Any, x: Tensor, grad: Tensor) -> dict[str, Any]:
    """The same by a loop over cameras."""
    norm.zero_grad()
    x = x.detach().requires_grad_()
    out = torch.empty_like(x)
    for camera in WHICH.unique().tolist():
        rows = camera == WHICH
        several = x[rows].numel() > CHANNELS
        out[rows] = F.batch_norm(x[rows], norm.get_buffer(MEAN)[camera], norm.get_buffer(VAR)[camera], norm.weight,
                                 norm.bias, several, norm.momentum, norm.eps)
    F.batch_norm(x.detach(), norm.running_mean, norm.running_var, None, None, True, norm.momentum, norm.eps)
    norm.num_batches_tracked.add_(1)
    out.backward(grad)
    return {"out": out.detach(), "x": x.grad, "weight.grad": norm.weight.grad, "bias.grad": norm.bias.grad,
            **{name: value.clone() for name, value in norm.named_buffers()}}


@on_ranks(1, 2, 4)
def by_camera(world: World, folder: Path) -> dict[str, Any]:
    """Two passes of each kind over each split; ranks are told which cameras the whole batch has."""
    found: dict[str, Any] = {}
    for kind in SHAPES:
        for split in SPLITS[world.world_size]:
            norm, (x, grad) = _norm(kind), _rows(kind)
            own = [torch.split(values, split)[world.rank] for values in (x, grad, WHICH)]
            found[f"{kind} {split}"] = [_pass(norm, own[0] * scale, own[1], own[2], WHICH.unique())
                                        for scale in (1, 2)]
    return found


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("kind", SHAPES)
def test_ranks_together_are_a_loop_over_cameras(computed: Callable[..., Any], kind: str, world_size: int) -> None:
    ranks = computed(by_camera, world_size)
    for split in SPLITS[world_size]:
        norm, (x, grad) = _norm(kind), _rows(kind)
        for turn in range(2):
            wanted = _loop(norm, x * (1 + turn), grad)
            found = [rank[f"{kind} {split}"][turn] for rank in ranks]
            for key, value in wanted.items():
                if key in ("out", "x"):
                    got = [torch.cat([rank[key] for rank in found])]
                elif key.endswith(".grad"):  # each rank has the part through its own rows
                    got = [sum(rank[key] for rank in found)]
                else:
                    got = [rank[key] for rank in found]
                for one in got:
                    torch.testing.assert_close(one, value, rtol=1e-11, atol=1e-11)


def test_a_camera_does_not_touch_another() -> None:
    for kind in SHAPES:
        x, grad = _rows(kind)
        changed, others = x.clone(), WHICH != 3
        changed[~others] = 7 * changed[~others] ** 2
        before, after = (_pass(_norm(kind), values, grad) for values in (x, changed))
        for key in ("out", "x"):
            assert torch.equal(before[key][others], after[key][others])
        for key in (MEAN, VAR):
            kept = torch.arange(CAMERAS) != 3
            assert torch.equal(before[key][kept], after[key][kept])
            assert not torch.equal(before[key][3], after[key][3])
            start = _norm(kind).get_buffer(key)
            assert torch.equal(after[key][[2, 4]], start[[2, 4]])  # nobody was seen by these
            assert torch.equal(after[key][1], start[1]) == (kind == "1d")  # a single value


def test_where_nobody_says_which_cameras_there_are_it_is_the_same() -> None:
    x, grad = _rows("2d")
    told, untold = (_pass(_norm("2d"), x, grad, WHICH, present) for present in (WHICH.unique(), None))
    for key, value in told.items():
        torch.testing.assert_close(untold[key], value, rtol=1e-12, atol=1e-12)


def test_the_backward_pass_is_the_derivative() -> None:
    for kind in ("1d", "2d"):
        norm, (x, _) = _norm(kind), _rows(kind)
        with using_cameras(WHICH):
            assert torch.autograd.gradcheck(lambda x, *_, norm=norm: norm(x), (x.requires_grad_(), norm.weight))


def test_under_bfloat16_statistics_are_in_single_precision() -> None:
    x, grad = (values.bfloat16() for values in _rows("channels last"))
    wanted = _loop(_norm("channels last").float(), x.float(), grad.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = _pass(_norm("channels last").float(), x, grad)
    assert found["out"].dtype == found["x"].dtype == torch.bfloat16
    assert found["out"].is_contiguous(memory_format=torch.channels_last)
    for key in (MEAN, VAR, "running_mean", "running_var"):
        torch.testing.assert_close(found[key], wanted[key])
    for key in ("out", "x"):
        torch.testing.assert_close(found[key].float(), wanted[key], rtol=0.02, atol=0.02)


# Models


SPEC = ImageSpec(*SIZE)
PARTS = parts_in("train", "train")


def _trained_by_camera(cameras: list[tuple[str, int]], uses: dict[str, str] = PARTS) -> EmbAE:
    made = model(uses, cameras, cameras=cameras)
    for part in (made.backbone, made.embedding):
        extend_tables(part, len(cameras), trains=True)
    use_global_batch_norm(made, sync=True)
    return made.train()


@on_ranks(1)
def calibrated(world: World, folder: Path) -> dict[str, Any]:
    """The tables of calibration, without its prior, and those of a pass in training mode over all images at once."""
    from embae.trainer.inference import calibration_prior
    from embae.trainer.inference.batches import read_batches
    from embae.trainer.inference.calibration import calibrate
    from embae.trainer.recipe.calibration import Calibrate

    view = target(shared_shards(world, folder) / "labelled")
    reading = Reading("webdataset", 1, len(view))
    wanted = model(parts_in("frozen", "frozen")).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_prior, "PRIOR_IMAGES", 0)
        calibrate(wanted, Calibrate(what="batch-norm"), view, Inference(SPEC, world, folder, reading))
    trained = _trained_by_camera(view.cameras())
    for module in trained.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    (batch,) = read_batches(view, np.arange(len(view)), SPEC, reading, world.device)
    trained(batch.inputs, trained.image_cameras(batch))
    states = [{key: value for key, value in made.state_dict().items() if key.endswith((MEAN, VAR))}
              for made in (wanted, trained)]
    return {"wanted": states[0], "found": states[1]}


def test_a_pass_over_all_images_is_calibration(computed: Callable[..., Any]) -> None:
    (rank,) = computed(calibrated, 1)
    assert len(rank["wanted"]) == 30 and all(len(table) == 3 for table in rank["wanted"].values())
    assert rank["found"].keys() == rank["wanted"].keys()
    for key, value in rank["wanted"].items():
        torch.testing.assert_close(rank["found"][key], value, rtol=1e-5, atol=1e-5)


VIEW = ToyView(pid=[0] * 12, camid=[4, 0, 4, 4, 0, 0, 1, 4, 0, 4, 0, 4])


def _write(run: Path, made: EmbAE, name: str) -> None:
    with finish_stage(run / name, StageCost(0, 1, 1.0)) as partial:
        export.write(partial, made, made.state_dict(), keys=KEYS, spec=ImageSpec(32, 32))


def test_a_stage_takes_tables_over_and_gives_new_cameras_the_shared_statistics(tmp_path: Path) -> None:
    before = _trained_by_camera([("toy", 0), ("toy", 7)])
    (batch,) = share_of(ToyView([0] * 6, [0, 7] * 3), images(6), np.arange(6), 0, 1)
    before(batch.inputs, before.image_cameras(batch))
    _write(tmp_path, before, "before")
    uses = {**parts_in("frozen", "train", "absent", "train")}
    keys = stage(uses, RECONSTRUCTION, init="before", batch_norm={"embedding": "camera"})
    cameras = [("toy", 0), ("toy", 1), ("toy", 4)]
    made = initial_model(KEYS, keys, StageStart("now", 0, tmp_path, Seen(cameras)))
    assert made.cameras == [("toy", 0), ("toy", 7), ("toy", 1), ("toy", 4)]
    tables = [key for key in made.state_dict() if key.rpartition(".")[2] in TABLES]
    assert len(tables) == 30  # of the frozen backbone too
    for key in tables:
        found, had = made.state_dict()[key], before.state_dict()[key]
        shared = before.state_dict()[key.replace("camera_", "running_")]
        assert torch.equal(found, torch.stack([*had, shared, shared]))
    _write(tmp_path, made, "now")
    back = SavedModel.open(tmp_path / "now" / "export").restore()
    assert back.cameras == made.cameras
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in made.state_dict().items())
    # A camera that has its number from a name is told by that.
    before.known_cameras = KnownCameras(before.known_cameras.cameras, {("toy", 0): "door", ("toy", 7): "hall"})
    _write(tmp_path, before, "named")
    named = keys.model_copy(update={"init": "named"})
    view = Seen(cameras, {("toy", 0): "attic", ("toy", 1): "door", ("toy", 4): "hall"})
    made = initial_model(KEYS, named, StageStart("now", 0, tmp_path, view))  # type: ignore[arg-type]
    assert made.cameras == [("toy", 0), ("toy", 7), ("toy", 8)]
    assert list(made.known_cameras.names.values()) == ["door", "hall", "attic"]
    # As a part that trains by batches, or starts afresh, it has none.
    plain = stage(uses, RECONSTRUCTION, init="before")
    state = initial_model(KEYS, plain, StageStart("now", 0, tmp_path, Seen(cameras))).state_dict()
    assert not any(key.startswith("embedding") and key.endswith(TABLES) for key in state)
    fresh = stage(uses, RECONSTRUCTION, init="before", batch_norm={"embedding": "camera"}, reinit=["embedding"])
    state = initial_model(KEYS, fresh, StageStart("now", 0, tmp_path, Seen(cameras))).state_dict()
    assert torch.equal(state[f"embedding.2.{VAR}"], torch.ones(4, KEYS.hidden))


# As in adapt-best's first step and, with a nuisance head a camera, in all of adapt-embae's.
TOGETHER: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "triplet": (PARTS, {"triplet": {}}),
    "embae": (parts_in("train", "train", "train", "train"),
              {"triplet": {}, "memory": {"update": "hard"}, "proxies": {}, "reconstruction": {}}),
}  # fmt: skip


@on_ranks(1, 2)
def objectives(world: World, folder: Path) -> dict[str, Any]:
    """Gradients and buffers of a step with both parts by camera, the global batch having cameras 0, 1 and 4 of five."""
    found = {}
    for name, (uses, loss) in TOGETHER.items():
        made = _trained_by_camera([("toy", camid) for camid in range(5)], uses)
        keys, plan = stage(uses, loss), np.arange(12)
        view = ToyView(pid=[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], camid=VIEW.camid.tolist())
        (batch,) = share_of(view, images(12), plan, world.rank, world.world_size)
        kept = keys.loss.build_states(view, made.z)  # type: ignore[union-attr, arg-type]
        for memory in kept.values():
            random = torch.Generator().manual_seed(3)
            memory.entries.copy_(F.normalize(torch.randn(memory.entries.shape, generator=random)))
        objective = Objective(made, keys.loss, kept).train()
        loss, _ = objective(batch)
        loss.backward()
        gradients = {}
        for key, parameter in made.named_parameters():
            if parameter.grad is None:  # a head without images in the global batch
                assert key.startswith(("nuisance.heads.2.", "nuisance.heads.3."))
                continue
            torch.distributed.all_reduce(parameter.grad)
            gradients[key] = parameter.grad / world.world_size
        found[name] = {"gradients": gradients, "buffers": dict(made.named_buffers())}
    return found


@pytest.mark.parametrize("name", TOGETHER)
def test_a_whole_step_is_the_same_on_two_ranks(computed: Callable[..., Any], name: str) -> None:
    wanted = computed(objectives, 1)[0][name]
    before = dict(_trained_by_camera([("toy", camid) for camid in range(5)], TOGETHER[name][0]).named_buffers())
    for ranks in computed(objectives, 2):
        found = ranks[name]
        assert distance(found["gradients"], wanted["gradients"]) < 1e-5
        assert distance(found["buffers"], wanted["buffers"]) < 1e-6
        for key, value in found["buffers"].items():
            if key.endswith(TABLES):
                assert torch.equal(value[[2, 3]], before[key][[2, 3]])
                assert not torch.equal(value[[0, 4]], before[key][[0, 4]])
        # Its one image is a single value to the embedding's norm.
        for key, moves in ((f"backbone.stem.bn.{MEAN}", True), (f"embedding.2.{MEAN}", False)):
            assert torch.equal(found["buffers"][key][1], before[key][1]) != moves
