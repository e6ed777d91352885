"""Writes a model in a format, reads the files back with the library that loads them, and compares with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embae.trainer.deployment.deployed_model import Deployed
from embae.trainer.deployment.formats.format import ExportFormat
from embae.trainer.errors import WeightsError
from embae.trainer.model.saved import SavedModel

BATCHES = (1, 8)
TOLERANCE = 1e-4


def write_verified(folder: Path, export_format: ExportFormat, export: SavedModel, deployed: Deployed,
                   about: dict[str, Any]) -> dict[str, float]:
    """Writes a model in a format, reads it back and compares its embeddings with PyTorch's.

    Args:
        folder: An existing folder.
        export_format: The format.
        export: The model on disk.
        deployed: The same model as it is used.
        about: What the files say about the model, JSON-ready.

    Returns:
        Batch size as text → the largest relative difference of an embedding from PyTorch's.

    Raises:
        WeightsError: A module is not installed, or a difference is larger than `TOLERANCE`.
    """
    export_format.check_installed()
    program = export_format.write(folder, export, deployed, about)
    reference = _Reference(export)
    differences = {}
    for batch in BATCHES:
        images, *camera = deployed.inputs(export, batch)
        if not export_format.uses_camera_statistics:
            camera = [torch.full_like(numbers, -1) for numbers in camera]
        differences[str(batch)] = _difference(program, reference, images, *camera)
    _refuse_differences(differences, export, export_format)
    return differences


class _Reference(nn.Module):
    """A model as it was trained, on images that are not normalised."""

    def __init__(self, export: SavedModel):
        super().__init__()
        self.path, self._model = export.path, export.restore()
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (export.spec.mean, export.spec.std))

    def forward(self, images: Tensor, *camera: Tensor) -> Tensor:
        return self._model((images - self._mean) / self._std, *camera)


@torch.inference_mode()
def _difference(program: Any, reference: _Reference, images: Tensor, *camera: Tensor) -> float:
    """The largest relative difference of an embedding between a file read back and the model as it was trained."""
    expected, actual = reference(images, *camera), program(images, *camera)
    if actual.shape != expected.shape:
        raise WeightsError(f"{reference.path}: the exported file gives embeddings {tuple(actual.shape)}, expected "
                           f"PyTorch's {tuple(expected.shape)}; try another --format")
    lengths = torch.linalg.vector_norm(expected, dim=1).clamp_min(1e-12)
    return float((torch.linalg.vector_norm(actual - expected, dim=1) / lengths).max())


def _refuse_differences(differences: dict[str, float], export: SavedModel, export_format: ExportFormat) -> None:
    too_large = {batch: value for batch, value in differences.items() if not value <= TOLERANCE}  # NaN is too large
    if too_large:
        values = ", ".join(f"{value:.1e} at batch {batch}" for batch, value in too_large.items())
        raise WeightsError(f"{export.path}: as {export_format.name} its embeddings differ from PyTorch's by {values}, "
                           f"relative to their length; expected at most {TOLERANCE:.0e}, so nothing is written; try "
                           "another --format")
