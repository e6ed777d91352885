"""A trained model in a program: the embeddings of ``embae evaluate``, whatever form images come in."""

from __future__ import annotations

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_run
from helpers.exported_model import OTHER, STORED, export, files, park
from helpers.toy_models import BACKBONE
from PIL import Image

from embae.datasets.errors import DataError
from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer import load
from embae.trainer.deployment.pixels import pixels
from embae.trainer.errors import RecipeError
from embae.trainer.inference.embeddings import embedded
from embae.trainer.inference.options import Inference, Reading
from embae.trainer.model.saved import SavedModel
from embae.trainer.runtime.distributed import World

ALONE = World(0, 0, 1, torch.device("cpu"))


def evaluated(path: Path, tta: Any, folder: Path) -> np.ndarray:
    opened = SavedModel.open(path / "export")
    inference = Inference(opened.spec, ALONE, folder, Reading("dali", 1), tta)
    with embedded(opened.restore(), park(), inference) as found:
        return np.array(found)


def apart(found: torch.Tensor, wanted: np.ndarray) -> float:
    """The largest difference, relative to the length."""
    return float((np.linalg.norm(found.numpy() - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


def test_login_nodes_may_import_the_package() -> None:
    code = "import sys, embae.trainer; print('torch' in sys.modules, 'load' in embae.trainer.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "True"], done.stderr
    with pytest.raises(ImportError, match="no_such"):
        from embae.trainer import no_such  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize("tta", ["none", "flip", "ten-crop"])
@pytest.mark.parametrize("spec, tolerance", [(STORED, 1e-2), (OTHER, 1e-2), (ImageSpec(36, 18), 1e-2)])
def test_embeddings_are_those_of_evaluate(spec: ImageSpec, tolerance: float, tta: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "stage", spec)
    wanted = evaluated(path, tta, tmp_path / "cache")
    found = load(path, device="cpu", tta=tta)(files(tmp_path))
    assert found.shape == wanted.shape and found.dtype == torch.float32 and apart(found, wanted) < tolerance
    assert apart(found[1:], wanted[:-1]) > 2 * tolerance  # which other images are not


def test_every_form_of_an_image_gives_the_same(tmp_path: Path) -> None:
    loaded, paths = load(export(tmp_path / "stage", OTHER), device="cpu"), files(tmp_path)[:5]
    wanted = loaded(paths)
    arrays = [np.asarray(Image.open(path)) for path in paths]
    stacked = np.stack(arrays)
    tensor = torch.from_numpy(stacked).permute(0, 3, 1, 2)
    forms: list[Any] = [
        [str(path) for path in paths], tuple(Image.open(path) for path in paths), arrays, stacked, tensor,
        tensor / 255, tensor.double() / 255, list(tensor / 255), [paths[0], stacked[1], tensor[2] / 255, tensor[3:]]]
    for form in forms:
        assert torch.equal(loaded(form), wanted)
    for single in (paths[0], str(paths[0]), Image.open(paths[0]), arrays[0], tensor[0], tensor[:1] / 255):
        assert torch.allclose(loaded(single), wanted[:1], atol=1e-6)
    assert loaded([]).shape == (0, loaded.width) and not wanted.requires_grad
    wanted.requires_grad_().sum().backward()  # an ordinary tensor


def test_images_of_other_kinds_and_sizes(tmp_path: Path) -> None:
    """PNG with transparency, greys, turned by Exif: as a person sees them."""
    loaded, path = load(export(tmp_path / "stage", STORED), device="cpu"), files(tmp_path)[0]
    image = Image.open(path).convert("RGB")
    clear = image.copy()
    clear.putalpha(120)
    clear.save(tmp_path / "clear.png")
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned back
    turned.save(tmp_path / "turned.png", exif=exif)
    wanted = loaded(image)
    assert torch.equal(loaded(tmp_path / "clear.png"), wanted) and torch.equal(loaded(tmp_path / "turned.png"), wanted)
    assert torch.equal(loaded(image.convert("L")), loaded(image.convert("L").convert("RGB")))
    large, wide = image.resize((160, 320)), image.resize((90, 30))
    assert loaded([large, wide, image]).shape == (3, loaded.width)


def test_batches_are_computed_apart(tmp_path: Path) -> None:
    path, images = export(tmp_path / "stage", STORED), files(tmp_path)
    whole, some = load(path, device="cpu")(images), load(path, device="cpu", batch=3)(images)
    torch.testing.assert_close(some, whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="batch: 0"):
        load(path, batch=0)


def test_several_threads_at_once(tmp_path: Path) -> None:
    """Each with cameras of its own."""
    loaded, images = load(export(tmp_path / "stage", STORED, cameras=2), device="cpu"), files(tmp_path)[:3]
    cameras = [("park", 1), ("park", 2)] * 4
    wanted = [loaded(images, camera) for camera in cameras[:2]]
    assert apart(wanted[0], wanted[1].numpy()) > 0.01
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda camera: loaded(images, camera), cameras))
    assert all(torch.equal(one, wanted[number % 2]) for number, one in enumerate(found))


def test_a_calibrated_model_sees_through_the_images_cameras(tmp_path: Path) -> None:
    path = export(tmp_path / "stage", STORED, cameras=2)
    wanted, images, camids = evaluated(path, "flip", tmp_path / "cache"), files(tmp_path), park()
    each = [("park", int(camid)) for camid in camids.column("camid", np.arange(len(camids)))]
    loaded = load(path, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert apart(loaded(images, each), wanted) < 1e-2
        assert torch.equal(loaded(images[0], each[0]), loaded(images[:1], [each[0]]))
        named = load(export(tmp_path / "named", STORED, cameras=2, names=["door", "hall"]), device="cpu")
        called = [("park", ("door", "hall")[camid - 1]) for _, camid in each]
        assert torch.equal(named(images, called), loaded(images, each)) and torch.equal(
            named(images[0], called[0]), loaded(images[0], each[0]))
        assert named.names == {("park", 1): "door", ("park", 2): "hall"}
    with pytest.warns(UserWarning, match=r"\(door, hall of park\), and \('park', 'yard'\) is none of them"):
        named(images[0], ("park", "yard"))
    shared = load(export(tmp_path / "plain", STORED), device="cpu")
    with pytest.warns(UserWarning, match="calibrated by camera") as told:
        strange = loaded(images, [("door", 7), None, *[None] * (len(images) - 2)])
        loaded(images)
    assert len(told) == 1  # once
    torch.testing.assert_close(strange, shared(images, ("any", 3)), rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match="camera: found 2 for"):
        loaded(images, [("park", 1), ("park", 2)])


@pytest.mark.parametrize("images, said", [
    ("missing.jpg", r"missing\.jpg: cannot be read \(No such file"),
    (".", r"\.: cannot be read \(Is a directory"),
    (__file__, "not an image of a known kind"),
    (np.zeros((40, 20), np.uint8), r"array of uint8, shape \(40, 20\)"),
    (np.zeros((40, 20, 4), np.uint8), r"array of uint8, shape \(40, 20, 4\)"),
    (np.zeros((40, 20, 3), np.float32), r"array of float32, shape \(40, 20, 3\); expected a path"),
    (torch.zeros(40, 20, 3), r"tensor of float32, shape \(40, 20, 3\)"),
    (torch.zeros(3, 40, 20, dtype=torch.int64), "tensor of int64"),
    (torch.full((1, 3, 40, 20), 2.5), "numbers from 2.5 to 2.5; expected 0 to 1"),
    (torch.full((1, 3, 40, 20), float("nan")), "numbers from nan to nan"),
    (Image.new("I;16", (20, 40)), "PIL image of mode I;16"),
    (7, "int 7"),
])
def test_what_is_no_image_is_reported(images: Any, said: str, tmp_path: Path) -> None:
    loaded = load(export(tmp_path / "stage", STORED), device="cpu")
    with pytest.raises(DataError, match=said):
        loaded(images)


def test_a_cut_image_is_reported(tmp_path: Path) -> None:
    path = files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"00\.jpg: damaged or cut short"):
        pixels(path)


def test_run_stage_and_export_are_found(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number, stage in enumerate(("embedding", "autoencoder")):
        export(run / stage, replace(STORED, height=40 + number))
        (run / stage / "done").write_text("{}")
    tiny_run.write(run, tiny_run.tree(model__backbone=BACKBONE), "recipe.yaml")
    heights = [load(path, device="cpu").spec.height for path in (run / "embedding", run / "autoencoder" / "export")]
    assert heights == [40, 41] and load(run, stage="embedding").spec.height == 40
    with pytest.raises(RecipeError, match="target-embedding has no model to load; done: embedding, autoencoder"):
        load(run)
    with pytest.raises(RecipeError, match="no-such is not a stage of this run"):
        load(run, stage="no-such")
    with pytest.raises(RecipeError, match="neither a run folder"):
        load(tmp_path)
    with pytest.raises(RecipeError, match="contains one model"):
        load(run / "embedding", stage="embedding")
    tiny_run.write(run, tiny_run.tree(evaluate={"Baseline": "embedding"}), "recipe.yaml")
    assert load(run).spec.height == 40
