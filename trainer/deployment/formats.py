"""Files that other programs load: ONNX, a ``torch.export`` program, or safetensors in timm's names.

Each is read back with the program that will read it, and held against PyTorch, before it is called done. What `write`
leaves in a folder::

    onnx            model.onnx
    torch-export    model.pt2
    safetensors     model.safetensors, the backbone in timm's names, and what goes with it (`export_timm.py`)
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from embae.trainer.deployment.deployed_model import CAMERA, IMAGES, OUTPUT, Deployed
from embae.trainer.deployment.timm import write_for_timm
from embae.trainer.errors import WeightsError
from embae.trainer.model.saved import SavedModel

Format = Literal["onnx", "torch-export", "safetensors"]
BATCHES = (1, 8)
TOLERANCE = 1e-4
_OPSET = 18
_ONNX = ("onnx", "onnxruntime", "onnxscript")

Run = Callable[..., Tensor]


def check_installed(form: Format) -> None:
    """Looks for what a format needs.

    Raises:
        ExportError: It is not installed; says how to.
    """
    missing = [name for name in (_ONNX if form == "onnx" else ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise WeightsError(f"--format {form}: needs {', '.join(missing)}; install with: pip install 'embae[export]'")


def write(
    folder: Path, form: Format, export: SavedModel, deployed: Deployed, about: dict[str, Any]
) -> dict[str, float]:
    """Writes a model in a format, reads it back and compares.

    Args:
        folder: Is there.
        form: The format.
        export: The model on disk.
        deployed: The same as it is used.
        about: What the file says of itself where it can, JSON-ready.

    Returns:
        Batch size as text → the largest relative difference of an embedding from PyTorch's.

    Raises:
        ExportError: Something is not installed, or a difference is larger than `TOLERANCE`.
    """
    check_installed(form)
    back = {"onnx": _onnx, "torch-export": _torch_export, "safetensors": write_for_timm}[form](
        folder, export, deployed, about)
    reference = export.restore()
    found = {str(batch): _difference(back, reference, export, deployed, batch, form) for batch in BATCHES}
    wrong = {batch: value for batch, value in found.items() if not value <= TOLERANCE}  # NaN is wrong too
    if wrong:
        said = ", ".join(f"{value:.1e} at batch {batch}" for batch, value in wrong.items())
        raise WeightsError(
            f"{export.path}: as {form} its embeddings differ from PyTorch's by {said}, relative to their "
            f"length; wanted at most {TOLERANCE:.0e}, so nothing is written; try another --format"
        )
    return found


@torch.inference_mode()
def _difference(
    back: Run, reference: nn.Module, export: SavedModel, deployed: Deployed, batch: int, form: Format
) -> float:
    """The largest relative difference of an embedding between a file read back and the model as it was trained."""
    images, *camera = deployed.inputs(export, batch)
    if form == "safetensors":  # timm's backbone knows the statistics that all cameras share
        camera = [torch.full_like(one, -1) for one in camera]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (export.spec.mean, export.spec.std))
    wanted = reference((images - mean) / std, *camera)
    got = back(images, *camera)
    if got.shape != wanted.shape:
        raise WeightsError(f"{export.path}: as {form} it gives {tuple(got.shape)}, PyTorch {tuple(wanted.shape)}")
    lengths = torch.linalg.vector_norm(wanted, dim=1).clamp_min(1e-12)
    return float((torch.linalg.vector_norm(got - wanted, dim=1) / lengths).max())


def _dynamic(inputs: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch", min=1, max=2**16)
    return tuple({0: batch} for _ in inputs)


def _onnx(folder: Path, export: SavedModel, deployed: Deployed, about: dict[str, Any]) -> Run:
    import onnx
    import onnxruntime
    path, inputs = folder / "model.onnx", deployed.inputs(export, 2)
    names = [IMAGES, CAMERA][:len(inputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the exporter itself calls deprecated
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(deployed, inputs, dynamo=True, verbose=False, input_names=names,
                                    output_names=[OUTPUT], dynamic_shapes=_dynamic(inputs), opset_version=_OPSET)
    assert program is not None
    program.save(str(path), external_data=False)
    made = onnx.load(str(path))
    for key, value in about.items():
        made.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.checker.check_model(made)
    onnx.save(made, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> Tensor:
        fed = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], fed)[0])

    return run


def _torch_export(folder: Path, export: SavedModel, deployed: Deployed, about: dict[str, Any]) -> Run:
    path, inputs = folder / "model.pt2", deployed.inputs(export, 2)
    program = torch.export.export(deployed, inputs, dynamic_shapes=_dynamic(inputs))
    torch.export.save(program, path, extra_files={"embae.json": json.dumps(about)})
    return torch.export.load(path).module()
