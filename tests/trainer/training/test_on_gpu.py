"""On a GPU: what other tests prove on CPU holds there too, within its rounding, and no step waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import gradient_cases as gradients
from helpers import tiny_run
from helpers.exported_model import export, files
from helpers.fault_injection import Command, Fault, exports, records
from helpers.ranks import on_ranks
from helpers.toy_models import CROWD, NECK, SECOND, distance, images, model, parts_in, share_of, stage

from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer import load
from embae.trainer.model.batch_norm import GlobalBatchNormFunction, use_global_batch_norm
from embae.trainer.model.camera_tables import extend_tables
from embae.trainer.runtime.distributed import World
from embae.trainer.training.adversarial_updates import build_updates
from embae.trainer.training.adversary import gaussian_noise
from embae.trainer.training.objective import Objective

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="skipped: no GPU")]


def _gpu(world: World) -> bool:
    """Ranks on CPU run every marked function too, for other tests."""
    return world.device.type == "cuda"


@on_ranks(1)
def one_step(world: World, folder: Path) -> dict[str, Any]:
    """Every case of the distributed test."""
    return gradients.one_step(world, folder) if _gpu(world) else {}


@pytest.mark.parametrize(
    ("name", "zero"), [(name, zero) for name, case in gradients.CASES.items() for zero in case.zero]
)
def test_a_step_is_that_of_plain_torch_on_cpu(computed: Callable[..., Any], name: str, zero: int) -> None:
    case, found = gradients.CASES[name], computed(one_step, 1)[0][f"{name}, ZeRO {zero}"]
    wanted = gradients.reference(name, 1)
    error = distance(found["gradients"], wanted.gradients)
    print(f"gradients {error:.1e}, buffers and frozen parts {distance(found['others'], wanted.others):.1e}")
    assert error < (1e-11 if case.double else 1e-4)
    assert distance(found["others"], wanted.others) < (1e-11 if case.double else 1e-5)
    assert found["loss"] == pytest.approx(wanted.loss, rel=1e-4)


@on_ranks(1)
def normalised(world: World, folder: Path) -> dict[str, Any]:
    """Batch norm as several ranks compute it, by one rank that exchanges with itself."""
    found: dict[str, Any] = {}
    for kind in (torch.float32, torch.bfloat16) if _gpu(world) else ():
        for layout in (torch.contiguous_format, torch.channels_last):
            x = (3 * images(12, size=(8, 6)) + 2).to(world.device, kind).contiguous(memory_format=layout)
            x.requires_grad_()
            weight, bias = torch.full((3,), 1.5), torch.full((3,), 0.5)
            running = torch.zeros(3), torch.ones(3), torch.zeros((), dtype=torch.int64)
            given = [value.to(world.device) for value in (weight, bias, *running)]
            weight, bias = (value.requires_grad_() for value in given[:2])
            norm = SimpleNamespace(running_mean=given[2], running_var=given[3], num_batches_tracked=given[4],
                                   momentum=0.1, eps=1e-5, spans_ranks=True)
            out = GlobalBatchNormFunction.apply(x, weight, bias, norm)
            out.backward(images(12, seed=3, size=(8, 6)).to(world.device, kind).contiguous(memory_format=layout))
            found[f"{kind} {layout}"] = [value.detach().cpu().double() for value in (
                x, out, x.grad, weight.grad, bias.grad, *given[2:4])]  # type: ignore[union-attr]
    return found


def test_batch_norm_over_ranks_is_torchs(computed: Callable[..., Any]) -> None:
    (found,) = computed(normalised, 1)
    assert len(found) == 4
    for name, (x, *values) in found.items():
        x = x.clone().requires_grad_()
        weight, bias = (torch.full((3,), value, dtype=torch.float64).requires_grad_() for value in (1.5, 0.5))
        running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        out = F.batch_norm(x, *running, weight, bias, True, 0.1, 1e-5)
        grad = images(12, seed=3, size=(8, 6))
        out.backward((grad if "float32" in name else grad.bfloat16()).double())
        for value, wanted in zip(values, (out, x.grad, weight.grad, bias.grad, *running), strict=True):
            assert value.sub(wanted).norm() < (1e-5 if "float32" in name else 1e-2) * wanted.norm(), name


# Parts, loss and the other keys of a stage: every loss, mining, batch norm and kind of engine that a recipe has.
STEPS: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, Any]]] = {
    "triplet and identity": (
        {**parts_in("train", "train"), "classifier": "train"}, {"triplet": {}, "identity": {}}, {}),
    "reconstruction": (parts_in("frozen", "train", "train", "train"), {"reconstruction": {}}, {}),
    "adversarial": ({**parts_in("frozen", "train", "train", "train"), "discriminator": "train"},
                    {"reconstruction": {}, "adversarial": {}}, {}),
    "memories by camera": (
        parts_in("train", "train"), {"memory": {"update": "hard"}, "proxies": {}, "triplet": {}},
        {"batch_norm": {"backbone": "camera", "embedding": "camera"}, "ema": 0.9}),
}  # fmt: skip


@contextmanager
def _never_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_ranks(1)
def steps(world: World, folder: Path) -> dict[str, str]:
    """What a step waited for, by its kind: nothing. From ZeRO 1 on DeepSpeed looks at the gradients' norm in each."""
    found: dict[str, str] = {}
    for name, (parts, loss, keys) in STEPS.items() if _gpu(world) else ():
        for precision in ("fp32", "bf16"):
            said, plain = f"{name}, {precision}", {"zero_stage": 0}
            try:
                found[said] = _steps(world, parts, loss, precision=precision, deepspeed=plain, **keys)
            except RuntimeError as error:
                found[said] = str(error)
    return found


def _steps(world: World, parts: dict[str, str], loss: dict[str, Any], **keys: Any) -> str:
    labelled = bool({"triplet", "identity", "memory"} & set(loss))
    data = {"from": "sources", **({"P": 4, "K": 2} if labelled else {"batch": 8})}
    of = {"of": NECK} if "memory" in loss else {}
    view = CROWD
    by_camera = bool(keys.get("batch_norm"))
    cameras = [(name, camid) for name in view.names for camid in (1, 2, 5, 7, 9)]
    made = model(parts, cameras, classes=7, cameras=cameras if by_camera else (), **of)  # type: ignore[arg-type]
    if by_camera:
        for part in (made.backbone, made.embedding):
            extend_tables(part, len(cameras), trains=True)
    keys = stage(parts, loss, data=data, optimizer={"name": "adam", "lr": 1e-3}, **keys)  # type: ignore[assignment]
    use_global_batch_norm(made, sync=True)
    made.to(world.device).train()
    kept = keys.loss.build_states(view, made.z)  # type: ignore[attr-defined, arg-type]
    for memory in kept.values():
        memory.buffers.to(world.device).get_buffer("entries").normal_()
    turns = build_updates(Objective(made, keys.loss, kept), keys, gaussian_noise(0, "steps"), largest=10)  # type: ignore[attr-defined, arg-type]
    inputs = images(len(view)).to(world.device)
    rows = SECOND[:10]
    for step in range(4):
        part = share_of(view, inputs, rows, 0, 1, step=step)
        if step < 2:  # what is made once, such as the optimizer's state, may wait
            turns.step(part, 1e-3)
        else:
            with _never_waiting():
                turns.step(part, 1e-3)
    turns.close()
    return ""


@pytest.mark.parametrize("name", STEPS)
def test_no_step_waits_for_the_device(computed: Callable[..., Any], name: str) -> None:
    (found,) = computed(steps, 1)
    assert {said: why for said, why in found.items() if said.startswith(name) and why} == {}
    assert sum(said.startswith(name) for said in found) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[object, ...]]:
    """As the fixture ``undisturbed``, on one GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "shards").symlink_to(tiny_run.shards())
    tiny_run.write(folder, tiny_run.tree(scoring={"tta": "none"}, checkpoints={"every": 2}))
    words = ("train", "tiny.yaml", "data.loader=webdataset", "--nproc", 1)
    done = Command(*words, "--out", "whole", cwd=folder, notes=folder / "notes").start()
    assert done.code == 0, done.err
    return folder, words


def test_the_same_command_gives_the_same_bits(run: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    folder, words = run
    assert Command(*words, "--out", tmp_path / "again", cwd=folder, notes=tmp_path / "notes").start().code == 0
    assert exports(tmp_path / "again") == exports(folder / "whole")
    assert records(tmp_path / "again") == records(folder / "whole")


def test_killed_it_goes_on_to_the_same_bits(run: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    folder, words = run
    command = Command(*words, "--out", tmp_path / "killed", cwd=folder, notes=tmp_path / "notes")
    assert command.start(Fault(r"rename .*/embedding/checkpoints/step-[0-9]+[.]partial$", 2)).code != 0
    done = command.start()
    assert done.code == 0 and "resumes after step" in done.out, done
    assert exports(tmp_path / "killed") == exports(folder / "whole")
    assert records(tmp_path / "killed", "eval") == records(folder / "whole", "eval")


@pytest.mark.parametrize("cameras", [0, 2])
def test_embeddings_are_those_of_the_cpu(cameras: int, tmp_path: Path) -> None:
    path, paths = export(tmp_path / "stage", ImageSpec(48, 24), cameras=cameras), files(tmp_path)
    camera = ("park", 1) if cameras else None
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        on_cpu, on_gpu = (load(path, device=device)(paths, camera) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-5)
