"""Safetensors by timm's names: the backbone as timm loads it, and files for what timm's own model does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embae.trainer.deployment.formats.format import READ_IMAGE, ExportFormat, Program, fill_template

if TYPE_CHECKING:
    from embae.trainer.deployment.deployed_model import Deployed
    from embae.trainer.model.saved import SavedModel

_HEADS = {
    "bnneck": 'head = nn.BatchNorm1d(len(weights["weight"])).eval()',
    "mlp": """hidden, features = weights["0.weight"].shape
head = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.BatchNorm1d(hidden),
                     nn.Linear(hidden, len(weights["3.weight"]))).eval()""",
}


class Timm(ExportFormat):
    """Safetensors, read back with timm."""

    name = "safetensors"
    library = "timm"
    uses_camera_statistics = False
    card_note = ("This code uses the statistics that all cameras share. Those of each camera are in "
                 "`cameras.safetensors`; the scores below were taken with them. Export as onnx to have them used.")

    def describe(self, contract: dict[str, Any], export: SavedModel, deployed: Deployed) -> dict[str, Any]:
        """Images are normalised outside; ``beyond`` is what timm's own model does not have."""
        from embae.trainer.deployment.formats.timm_files import beyond
        return {"normalisation": {**contract["normalisation"], "inside": False},
                "input": {**contract["input"], "range": "(0 … 1 − mean) / deviation"},
                "beyond": beyond(export, deployed)}

    def write(self, folder: Path, export: SavedModel, deployed: Deployed, about: dict[str, Any]) -> Program:
        """See `ExportFormat`."""
        from embae.trainer.deployment.formats.timm_files import read_with_timm, write_for_timm
        write_for_timm(folder, export, deployed, about)
        return read_with_timm(folder)

    def example(self, about: dict[str, Any]) -> str:
        """See `ExportFormat`."""
        norm = about["normalisation"]
        code = "\n".join(_example(about["beyond"]))
        return fill_template(code, about, mean=norm["mean"], std=norm["std"])


def _example(beyond: dict[str, Any]) -> Iterator[str]:
    """Code that gives embeddings with timm, with a line for each thing that timm's own model does not have."""
    yield "import numpy as np\nimport timm\nimport torch\nfrom PIL import Image"
    if beyond["head"]:
        yield "from safetensors.torch import load_file"
    if beyond["head"] or beyond["unit"]:
        yield "from torch import nn"
    yield READ_IMAGE
    yield "mean, std = (torch.tensor(values).view(3, 1, 1) for values in ({mean}, {std}))"
    yield 'backbone = timm.create_model("local-dir:.", pretrained=True, num_classes=0).eval()'
    if names := beyond["stride_1"]:
        yield "# The last stage keeps the size of its feature map."
        yield "".join(f"{_as_code(name)}.stride = " for name in names) + "(1, 1)"
    if gem := beyond["gem"]:
        yield "# Generalised mean pooling: powers before the average, the root after it."
        yield f"pool, p = {_as_code(gem['module'])}, {gem['p']}"
        yield f"pool.register_forward_pre_hook(lambda _, inputs: (inputs[0].clamp(min={gem['eps']}) ** p,))"
        yield "pool.register_forward_hook(lambda *call: call[2] ** (1 / p))"
    yield "embedding = backbone((torch.from_numpy(images) - mean) / std)"
    if beyond["head"]:
        yield 'weights = load_file("head.safetensors")'
        yield _HEADS[beyond["head"]]
        yield "head.load_state_dict(weights)\nembedding = head(embedding)"
    if beyond["unit"]:
        yield "embedding = nn.functional.normalize(embedding)"


def _as_code(path: str) -> str:
    return "backbone." + re.sub(r"\.(\d+)", r"[\1]", path)
