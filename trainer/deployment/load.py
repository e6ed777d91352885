"""A trained model in another program: images in, embeddings out.

    from embae.trainer import load
    model = load("runs/embae-cam")
    a, b = model(["door.jpg", "hall.jpg"])
    print(torch.cosine_similarity(a, b, dim=0))
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from embae.datasets.errors import DataError
from embae.trainer.deployment.extract import model_key
from embae.trainer.deployment.pixels import Images, One, normalised, one_by_one, pixels, resized
from embae.trainer.inference.embeddings import read_size, views
from embae.trainer.model.known_cameras import describe_cameras
from embae.trainer.model.saved import SavedModel
from embae.trainer.recipe.scoring import TTA
from embae.trainer.retrieval.work_split import threads
from embae.trainer.runs.trained_model import find_model

Seen = tuple[str, str | int]
"""The camera that an image is from: its dataset, and its name or its number there."""


def load(path: str | Path, *, stage: str | None = None, device: str | torch.device | None = None, tta: TTA = "flip",
         batch: int = 256) -> Loaded:
    """Opens a trained model.

    Args:
        path: A run folder, the folder of a stage, or an export.
        stage: The stage of a run whose model it is; by default that of the last row of its table.
        device: Where it computes; by default a GPU if there is one.
        tta: Test-time augmentation: ``none``, ``flip`` (the image and its mirror image) or ``ten-crop``.
        batch: Images computed at a time.

    Raises:
        RecipeError: There is no model, or the stage is not done.
        WeightsError: Its files are damaged.
    """
    if batch < 1:
        raise ValueError(f"batch: {batch}, expected at least 1")
    export = SavedModel.open(find_model(Path(path), stage).export)
    return Loaded(export, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")), tta, batch)


class Loaded:
    """A model in eval mode; several threads may call it at once.

    Images are decoded by Pillow and resized by torch here, where training, ``embae evaluate`` and ``embae extract``
    decode and resize by DALI. Measured on drawn people at 128×64 with MobileNetV2: embeddings differ by 0.5 % of their
    length, 1 % at most; by less than 0.1 % where images are stored at the size that the model takes.

    Attributes:
        spec: Image size and normalisation.
        cameras: (dataset, camid) of the cameras that the model is calibrated on; mostly none.
        names: (dataset, camid) → name, of the cameras that have one.
        width: Dimension of an embedding.
        device: Where it computes.
        net: The network.
        key: A digest of the model and its input: embeddings of equal keys may be compared.
        tta: Test-time augmentation.
    """

    def __init__(self, export: SavedModel, device: torch.device, tta: TTA, batch: int):
        self.spec, self.cameras, self.names = export.spec, export.cameras, dict(export.known_cameras.names)
        self.net, self.device = export.restore().to(device), device
        self.width, self.key = self.net.z, model_key(self.net, export.spec, tta)
        self.tta, self._batch, self._warned = tta, batch, False

    def __call__(self, images: Images, camera: Seen | Sequence[Seen | None] | None = None) -> Tensor:
        """Raw embeddings: `(B, D)` float32, on the CPU. Compare them by cosine similarity, or scaled to length 1.

        Args:
            images: A path, a PIL image, a uint8 array `(H, W, 3)` or `(B, H, W, 3)`, a tensor `(3, H, W)` or
                `(B, 3, H, W)`, uint8 or of numbers from 0 to 1; or a list of these, of any sizes.
            camera: The camera that the images are from, ("station", "door") or ("station", 3), or one of each image,
                for a model that is calibrated by camera; numbers are those of `cameras`. The statistics that all
                cameras share serve where it is None or another one.

        Raises:
            DataError: Not images, a file that cannot be read, or another number of cameras than of images.
        """
        every = one_by_one(images)
        which = self._which(camera, len(every))
        embeddings = [torch.empty(0, self.width)]
        with ThreadPoolExecutor(threads()) as pool:
            for start in range(0, len(every), self._batch):
                some = slice(start, start + self._batch)
                embeddings.append(self._embed(every[some], None if which is None else which[some], pool))
        return torch.cat(embeddings)

    @torch.inference_mode()
    def _embed(self, images: Sequence[One], which: Tensor | None, pool: ThreadPoolExecutor) -> Tensor:
        size = read_size(self.spec, self.tta)
        small = pool.map(lambda image: resized(pixels(image), size), images)
        inputs = normalised(list(small), self.spec).to(self.device)
        which = None if which is None else which.to(self.device)
        return torch.stack([self.net(crop, which) for crop in views(inputs, self.spec, self.tta)]).mean(0) \
            .float().cpu()

    def _which(self, camera: Seen | Sequence[Seen | None] | None, count: int) -> Tensor | None:
        """Where each image's camera stands in the model's list: `(B,)`, −1 where it does not; None without a list."""
        if camera is None or (isinstance(camera, tuple) and len(camera) == 2 and isinstance(camera[0], str)):
            each: list[Seen | None] = [camera] * count
        else:
            each = [one if one is None else (str(one[0]), one[1] if isinstance(one[1], str) else int(one[1]))
                    for one in camera]
            if len(each) != count:
                raise DataError(f"camera: found {len(each)} for {count} images; expected one, or one for each image")
        if not self.cameras:
            return None
        numbers = [-1 if one is None else self.net.known_cameras.by_label(*one) for one in each]
        if -1 in numbers and not self._warned:
            self._warned = True
            warnings.warn(f"the model is calibrated by camera ({describe_cameras(self.cameras, self.names)}), and "
                          f"{each[numbers.index(-1)]} is none of them: such images use the statistics that all "
                          'cameras share; say camera=("DATASET", "NAME")', stacklevel=3)
        return torch.tensor(numbers, dtype=torch.int64)
