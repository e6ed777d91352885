"""A model for deployment: images in, embeddings out, normalisation and each camera's statistics inside the graph.

Its contract, a tree that is written with every exported file, describes its input and output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embae.datasets.sampling.keyed_random import generator
from embae.trainer.losses.parts import PartName
from embae.trainer.model.camera_tables import TABLES
from embae.trainer.model.saved import SavedModel

EMBEDDING_PARTS: tuple[PartName, ...] = ("backbone", "embedding")
IMAGES, CAMERA, OUTPUT = "images", "camera", "embedding"


class Deployed(nn.Module):
    """`EmbAE.forward` on images that are not normalised, without the parts that it does not use.

    Args:
        export: The model on disk.

    Raises:
        WeightsError: The weights are missing, damaged or of another model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, export: SavedModel):
        super().__init__()
        self.model = export.restore([part for part in export.parts if part in EMBEDDING_PARTS])
        for name, values in (("mean", export.spec.mean), ("std", export.spec.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
        self.by_camera = any(key.rpartition(".")[2] in TABLES for key in self.model.state_dict())
        self.eval()

    def forward(self, images: Tensor, camera: Tensor | None = None) -> Tensor:
        """Embeddings: `(B, 3, H, W)` RGB from 0 to 1 to `(B, Z)`.

        Args:
            images: At the size of the contract.
            camera: `(B,)` int64, each image's place in the contract's cameras, −1 if it is none of them; only a
                model that is calibrated camera by camera takes it.
        """
        return self.model((images - self.mean) / self.std, camera)

    def inputs(self, export: SavedModel, batch: int) -> tuple[Tensor, ...]:
        """Invented inputs of a batch size: noise, and every camera in turn, the unknown one included."""
        noise = generator(0, "deployed", batch).random((batch, 3, *export.spec.size), dtype=np.float32)
        images = torch.from_numpy(noise)
        if not self.by_camera:
            return (images,)
        return images, torch.arange(batch) % (len(self.model.known_cameras.cameras) + 1) - 1


def contract(export: SavedModel, deployed: Deployed) -> dict[str, Any]:
    """Describes input and output, JSON-ready.

    Returns:
        ``input``, ``camera`` (null where the graph takes none), ``output``, ``normalisation`` and ``resize``.
    """
    height, width = export.spec.size
    cameras = [list(camera) for camera in export.cameras]
    return {
        "input": {"name": IMAGES, "dtype": "float32", "shape": ["batch", 3, height, width], "colour": "RGB",
                  "range": [0, 1]},
        "camera": {"name": CAMERA, "dtype": "int64", "shape": ["batch"], "unknown": -1, "cameras": cameras,
                   "names": [export.known_cameras.names.get(camera) for camera in export.cameras]}
                  if deployed.by_camera else None,
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", deployed.model.z],
                   "compare": "Euclidean distance of embeddings divided by their length"},
        "normalisation": {"mean": list(export.spec.mean), "std": list(export.spec.std), "inside": True},
        "resize": f"the whole crop of a person to {height} × {width} (height × width), its aspect ratio not kept, by "
                  "antialiased bilinear interpolation (Pillow's BILINEAR), then divided by 255",
    }
