"""Exported files give PyTorch's embeddings in the programs that load them; what does not is refused."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.toy_models import KEYS, model, parts_in
from safetensors.torch import load_file
from typer.testing import CliRunner

from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer import load
from embae.trainer.commands.app import app
from embae.trainer.deployment.formats import timm_files
from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.model import saved as exports
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.camera_tables import MEAN, SCALE, SHIFT, VAR
from embae.trainer.model.saved import SavedModel
from embae.trainer.recipe.model import Model
from embae.trainer.runs import stage_folder

SPEC = ImageSpec(32, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
CAMERAS = [("toy", 3), ("toy", 8)]
# All that timm's own model lacks, and what it lacks of a transformer.
STRONG = Model(backbone="resnet18", pooling="gem", last_stride=1, head="bnneck", unit=True)
VIT = Model(backbone="test_vit", head="bnneck", unit=True)


def stage(folder: Path, *, of: Model = KEYS, calibrated: bool = False, head: bool = True) -> Path:
    """The export folder of a stage, of a model with made-up weights."""
    parts = parts_in("frozen", "frozen" if head else "absent")
    made = model(parts, of=of, size=SPEC.size, cameras=CAMERAS if calibrated else (),
                 names={CAMERAS[0]: "door"} if calibrated else {}).eval()
    if of.pooling == "gem":
        torch.nn.init.constant_(dict(made.backbone.named_parameters())["global_pool.p"], 2.7)
    if calibrated:
        use_global_batch_norm(made, sync=False)
        for norm in (one for one in made.modules() if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)):
            for name, value in ((MEAN, norm.running_mean), (VAR, norm.running_var)):
                assert value is not None
                norm.register_buffer(name, torch.stack([value * 1.5, value * 0.7]))
        made.backbone.register_buffer(SHIFT, 0.1 * torch.ones(2, made.features))
        made.backbone.register_buffer(SCALE, torch.tensor([[0.5], [2.0]]).repeat(1, made.features))
    with stage_folder.finish_stage(folder, stage_folder.StageCost(1, 2, 3.0)) as partial:
        exports.write(partial, made, made.state_dict(), keys=of, spec=SPEC)
    return folder / "export"


def run(*words: object) -> str:
    done = CliRunner().invoke(app, ["export", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def pictures(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).random((batch, 3, 32, 16), dtype=np.float32)


def wanted(folder: Path, images: np.ndarray, camera: list[int] | None = None) -> np.ndarray:
    """What the model itself gives, normalised outside."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    which = None if camera is None else torch.tensor(camera)
    with torch.inference_mode():
        return SavedModel.open(folder).restore()(torch.from_numpy((images - mean) / std), which).numpy()


def loaded(folder: Path, form: str) -> Any:
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        return lambda *given: session.run(None, dict(zip(names, given, strict=True)))[0]
    program = torch.export.load(folder / "model.pt2").module()
    return lambda *given: program(*map(torch.from_numpy, given)).numpy()


Made = Callable[[bool, str], tuple[Path, Path, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``made(calibrated, form)``: a stage's export, the folder it was exported to, and what was said; each once."""

    @functools.cache
    def source(calibrated: bool) -> Path:
        return stage(tmp_path_factory.mktemp("made") / "stage", calibrated=calibrated)

    @functools.cache
    def get(calibrated: bool, form: str) -> tuple[Path, Path, str]:
        said = run(source(calibrated), "--format", form)
        return source(calibrated), source(calibrated).parent / form, said

    return get


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_graph_gives_the_models_embeddings_at_any_batch(made: Made, form: str, calibrated: bool) -> None:
    source, to, said = made(calibrated, form)
    assert "batch 1: differs from PyTorch by" in said and "batch 8:" in said
    about = json.loads((to / "embae.json").read_text())
    assert (about["camera"] is not None) == calibrated and about["normalisation"]["inside"] is True
    assert about["input"]["shape"] == ["batch", 3, 32, 16] and about["output"]["shape"] == ["batch", KEYS.embedding]
    assert set(about["difference"]) == {"1", "8"} and max(about["difference"].values()) < 1e-4
    back = loaded(to, form)
    for batch in (1, 3, 8):  # 3 is none that the export was tried with
        camera = [number % 3 - 1 for number in range(batch)] if calibrated else None
        given = (pictures(batch), *([np.array(camera, np.int64)] if calibrated else []))
        np.testing.assert_allclose(back(*given), wanted(source, given[0], camera), rtol=1e-3, atol=1e-5)
    if calibrated:
        assert about["camera"]["names"] == ["door", None]
        assert about["camera"]["cameras"] == [["toy", 3], ["toy", 8]] and about["camera"]["unknown"] == -1
        one = pictures(1)
        assert not np.allclose(back(one, np.array([0])), back(one, np.array([-1])), rtol=1e-2)
    if form == "onnx":
        import onnx

        props = {one.key: one.value for one in onnx.load(str(to / "model.onnx")).metadata_props}
        assert json.loads(props["camera"]) == about["camera"] and "32 × 16" in props["resize"]
        assert json.loads(props["normalisation"])["mean"] == [0.1, 0.2, 0.3]
        assert sorted(path.name for path in to.iterdir()) == ["README.md", "embae.json", "model.onnx"]


@pytest.mark.parametrize(("calibrated", "head"), [(False, True), (False, False), (True, True)])
def test_safetensors_load_in_timm(tmp_path: Path, calibrated: bool, head: bool) -> None:
    source = stage(tmp_path / "stage", calibrated=calibrated, head=head)
    run(source, "--format", "safetensors", "--out", tmp_path / "out")
    backbone = timm.create_model(KEYS.backbone, num_classes=0).eval()
    backbone.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == KEYS.backbone and config["pretrained_cfg"]["input_size"] == [3, 32, 16]
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3] and "license" not in config["pretrained_cfg"]
    assert (tmp_path / "out" / "head.safetensors").exists() == head
    assert (tmp_path / "out" / "cameras.safetensors").exists() == calibrated
    whole = SavedModel.open(source).restore()
    images = torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images), whole.extract(images))


IMPORTS = "import timm, torch\nfrom safetensors.torch import load_file\nfrom torch import nn\n"


def card_code(folder: Path) -> str:
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize(("of", "head", "calibrated", "lines"), [
    (STRONG, True, False, 3), (STRONG, True, True, 3), (STRONG, False, False, 2), (VIT, True, False, 1),
], ids=["strong", "calibrated", "headless", "transformer"])
def test_timm_gives_the_embeddings_of_models_that_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: Model, head: bool, calibrated: bool, lines: int
) -> None:
    source, out = stage(tmp_path / "stage", of=of, head=head, calibrated=calibrated), tmp_path / "out"
    run(source, "--format", "safetensors", "--out", out)
    weights = load_file(out / "model.safetensors")
    sized = {"img_size": SPEC.size} if of is VIT else {}
    timm.create_model(of.backbone, num_classes=0, **sized).load_state_dict(weights, strict=True)
    code = card_code(out)
    stride = "backbone.layer4[0].conv1.stride = backbone.layer4[0].downsample[0].stride = (1, 1)"
    said = [stride in code, "clamp(min=1e-06)" in code, "nn.BatchNorm1d(len(weights" in code]
    assert sum(said) == lines and "nn.functional.normalize" in code
    monkeypatch.chdir(out)
    model, setup = load(source, device="cpu", tta="none"), code.split("mean, std = ")[1]
    for batch in (1, 8):
        images = np.round(pictures(batch) * 255) / np.float32(255)  # as pixels are
        names: dict[str, Any] = {"images": images}
        exec(f"{IMPORTS}mean, std = {setup}", names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of images of no camera
            found = model(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(names["embedding"].detach().numpy(), found, rtol=1e-3, atol=1e-5)
        if of is STRONG and batch == 8:  # each line counts
            for line in (stride, "pool.register_forward_pre_hook", "pool.register_forward_hook"):
                names = {"images": images}
                exec(f"{IMPORTS}mean, std = {setup}".replace(line, f"# {line}"), names)
                assert not np.allclose(names["embedding"].detach().numpy(), found, rtol=1e-2)


def test_the_code_of_the_card_runs(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    person = Image.fromarray((255 * pictures(1)[0].transpose(1, 2, 0)).astype(np.uint8))
    for form in ("onnx", "torch-export", "safetensors"):
        source, to, _ = made(False, form)
        shutil.copytree(to, tmp_path / form)
        monkeypatch.chdir(tmp_path / form)
        person.save("person.jpg")
        names: dict[str, Any] = {}
        exec(card_code(tmp_path / form), names)
        found = names["embedding"]
        np.testing.assert_allclose(found.detach().numpy() if torch.is_tensor(found) else found,
                                   wanted(source, names["images"] if form != "torch-export" else
                                          names["images"].numpy()), rtol=1e-3, atol=1e-5)


def test_a_difference_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = stage(tmp_path / "stage"), timm_files.save_weights

    def off(state: dict[str, torch.Tensor], path: Path) -> None:
        real({key: value * 1.001 if key == "3.weight" else value for key, value in state.items()}, path)

    monkeypatch.setattr(timm_files, "save_weights", off)
    with pytest.raises(WeightsError, match=r"differ from PyTorch's by .* at batch 1.*nothing is written"):
        run(source, "--format", "safetensors", "--out", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = stage(tmp_path / "stage"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(WeightsError, match=r"needs onnxruntime; install with: pip install 'embae\[export\]'"):
        run(source, "--format", "onnx")
    assert not (tmp_path / "stage" / "onnx").exists()


def test_a_folder_of_others_is_not_replaced(tmp_path: Path) -> None:
    source, out = stage(tmp_path / "stage"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(WeightsError, match="already exists and was not written by embae export"):
        run(source, "--format", "safetensors", "--out", out)
    assert (out / "thesis.tex").exists()
    shutil.rmtree(out)
    run(source, "--format", "safetensors", "--out", out)
    (out / "model.onnx").write_bytes(b"of another format")
    run(source, "--format", "safetensors", "--out", out)  # of ours: replaced whole
    assert "model.safetensors" in {path.name for path in out.iterdir()} and not (out / "model.onnx").exists()


@pytest.mark.parametrize(("words", "error", "message"), [
    (["--format", "tflite"], WeightsError, "--format tflite: expected onnx, torch-export, safetensors"),
    (["--format", "onnx", "--stage", "embedding"], RecipeError, "is the export of one stage; leave out --stage"),
])
def test_wrong_words(tmp_path: Path, words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(stage(tmp_path / "stage"), *words)


def test_a_run_is_exported_with_what_it_says(
    undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import ModelCard

    folder = undisturbed[0]
    monkeypatch.chdir(folder)  # data.root is relative
    run("whole", "--format", "safetensors", "--out", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "timm" and "person-re-identification" in card.data.tags
    scores = json.loads((folder / "whole" / "evaluation" / "park.json").read_text())["rows"]["EmbAE-cam"]
    assert f"{scores['Rank-1']:.3f} (" in card.text and f"{scores['interval']['mAP'][1]:.3f})" in card.text
    assert "| park | target, trained on without labels |" in card.text
    assert "| square | source, trained on with labels |" in card.text
    assert "target-nuisance | " in card.text and "world size 2" in card.text
    run("whole", "--format", "safetensors", "--out", tmp_path / "first", "--stage", "embedding")
    text = (tmp_path / "first" / "README.md").read_text()
    assert "target-nuisance" not in text and "| park | " in text
    with pytest.raises(RecipeError, match="no stage of whole that has a model; these have one: embedding"):
        run("whole", "--format", "safetensors", "--stage", "nonsense")


def test_a_run_that_is_not_done(
    undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed[0])
    cut = tmp_path / "cut"
    shutil.copytree("whole", cut)
    (cut / "target-embedding" / "done").unlink()
    with pytest.raises(RecipeError, match=r"stage target-embedding is not done.*--stage embedding or autoencoder"):
        run(cut, "--format", "safetensors")
    with pytest.raises(RecipeError, match=r"not a run folder, recipe\.yaml is missing"):
        run(tmp_path, "--format", "safetensors")
