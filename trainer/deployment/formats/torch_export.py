"""A ``torch.export`` program: ``model.pt2``, with the contract as an extra file in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embae.trainer.deployment.formats.format import READ_IMAGE, ExportFormat, Program, fill_template

if TYPE_CHECKING:
    from embae.trainer.deployment.deployed_model import Deployed
    from embae.trainer.model.saved import SavedModel

FILE = "model.pt2"
_EXAMPLE = "import numpy as np\nimport torch\nfrom PIL import Image\n" + READ_IMAGE + (
    'images = torch.from_numpy(images)\nmodel = torch.export.load("model.pt2").module()\n'
    "embedding = model(images{camera})")


class TorchExport(ExportFormat):
    """A program that torch alone loads."""

    name = "torch-export"
    library = "pytorch"

    def write(self, folder: Path, export: SavedModel, deployed: Deployed, about: dict[str, Any]) -> Program:
        """See `ExportFormat`."""
        import torch

        from embae.trainer.deployment.formats.graph import free_batch
        path, inputs = folder / FILE, deployed.inputs(export, 2)
        program = torch.export.export(deployed, inputs, dynamic_shapes=free_batch(inputs))
        torch.export.save(program, path, extra_files={"embae.json": json.dumps(about)})
        return torch.export.load(path).module()

    def example(self, about: dict[str, Any]) -> str:
        """See `ExportFormat`."""
        return fill_template(_EXAMPLE, about, camera=", torch.tensor([-1])" if about["camera"] else "")
