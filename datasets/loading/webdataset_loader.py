"""The loader for systems without a DALI wheel: the webdataset library decodes, torchvision augments.

Plan, random numbers and interface are those of `dali_loader.py`. Of 255 grey levels, pixels differ by at most one after
a resize and by two more after a change of colours, and not at all without these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import torchvision.transforms.v2.functional as tf
import webdataset

from embae.datasets.loading.batch import Batch, Work
from embae.datasets.loading.draws import Draws
from embae.datasets.loading.to_device import to_device
from embae.datasets.loading.view_reader import ViewReader

AHEAD = 3  # batches decoded ahead


class WebDatasetLoader:
    """Yields batches that the image decoder of webdataset (Pillow) decodes in threads.

    Args:
        work: The batches.
        device: Where the images go.
        threads: Images decoded at the same time.

    Raises:
        DataError: While iterating, if the bytes of an image do not match their checksum or cannot be decoded.
    """

    name = "webdataset"

    def __init__(self, work: Work, *, device: torch.device, threads: int):
        self._work, self._device, self._reader = work, device, ViewReader(work.sampler.view, work)
        self._decode = webdataset.imagehandler("rgb8")
        self._mean = torch.tensor(work.spec.mean).view(3, 1, 1) * 255
        self._std = torch.tensor(work.spec.std).view(3, 1, 1) * 255
        self._pool = ThreadPoolExecutor(threads)

    def __iter__(self) -> Iterator[Batch]:
        ahead: deque[tuple[Batch, list[Future[torch.Tensor]]]] = deque()
        for number in range(len(self._work)):
            batch, draws = self._work.part(number)
            images = self._reader.read(batch.rows)
            ahead.append((batch, [self._pool.submit(self._image, data, draws.take(slice(at, at + 1)))
                                  for at, data in enumerate(images)]))
            if len(ahead) > AHEAD:
                yield self._finish(*ahead.popleft())
        while ahead:
            yield self._finish(*ahead.popleft())

    def _finish(self, batch: Batch, images: list[Future[torch.Tensor]]) -> Batch:
        decoded = []
        for row, image in zip(batch.rows, images, strict=True):
            try:
                decoded.append(image.result())
            except (OSError, SyntaxError, ValueError):  # what Pillow raises for a damaged JPEG
                self._reader.decode(int(row))  # raises an error that names the image
                raise
        stacked = torch.stack(decoded).contiguous(memory_format=torch.channels_last)
        batch.inputs = to_device(stacked, self._device)
        return batch

    def _image(self, data: bytes, draws: Draws) -> torch.Tensor:
        work, spec, augment = self._work, self._work.spec, self._work.augment
        image = torch.from_numpy(self._decode("image.jpg", data).copy()).permute(2, 0, 1)
        if image.shape[1:] != work.read_size:
            image = tf.resize(image, list(work.read_size), antialias=True)
        if augment.colours:
            image = _twist_colours(image, *draws.colour[0].tolist())
        if augment.crops:
            top, left = (int(x) for x in draws.anchor[0])
            padded = torch.tensor(spec.fill, dtype=torch.uint8).view(3, 1, 1).repeat(
                1, *(size + 2 * augment.pad for size in work.read_size))
            padded[:, augment.pad:augment.pad + image.shape[1], augment.pad:augment.pad + image.shape[2]] = image
            top, left = top + augment.pad, left + augment.pad
            image = padded[:, top:top + spec.height, left:left + spec.width]
        if augment.erase:
            top, left, height, width = (int(x) for x in draws.erase[0])
            image = image.clone()
            image[:, top:top + height, left:left + width] = torch.tensor(spec.fill, dtype=torch.uint8).view(3, 1, 1)
        if draws.flip[0]:
            image = image.flip(2)
        return (image - self._mean) / self._std

    def close(self) -> None:
        """Ends the threads and closes the shards."""
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()


# As DALI's color_twist: hue and saturation rotate and scale the chroma plane of YIQ, contrast is relative to mid-grey.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


def _twist_colours(
    image: torch.Tensor, brightness: float, contrast: float, saturation: float, hue: float
) -> torch.Tensor:
    angle = np.deg2rad(hue)
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]])
    scale = np.diag([1, saturation, saturation])
    matrix = torch.from_numpy(np.linalg.inv(_YIQ) @ rotation @ scale @ _YIQ * brightness * contrast).float()
    adjusted = torch.einsum("ij,jhw->ihw", matrix, image.float()) + 128 * (1 - contrast) * brightness
    return adjusted.round().clamp(0, 255).to(torch.uint8)
