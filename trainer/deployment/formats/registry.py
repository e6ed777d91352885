"""The export formats: one line for each."""

from __future__ import annotations

from embae.trainer.deployment.formats.format import ExportFormat
from embae.trainer.deployment.formats.onnx import Onnx
from embae.trainer.deployment.formats.timm import Timm
from embae.trainer.deployment.formats.torch_export import TorchExport
from embae.trainer.errors import WeightsError

_FORMATS: tuple[ExportFormat, ...] = (
    Onnx(),
    TorchExport(),
    Timm(),
)
FORMATS = {export_format.name: export_format for export_format in _FORMATS}
"""Name on the command line → the format."""


def format_by_name(name: str) -> ExportFormat:
    """The format of a name.

    Raises:
        WeightsError: There is none.
    """
    if name not in FORMATS:
        raise WeightsError(f"--format {name}: expected {', '.join(FORMATS)}")
    return FORMATS[name]
