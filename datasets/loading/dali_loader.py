"""Decoding and augmentation by NVIDIA DALI: the only file that imports it.

DALI's WebDataset reader reads tars in order and cannot sample P identities × K images, so the encoded bytes are read by
offset and passed to the pipeline together with the numbers of the augmentation.
"""

# DALI's type hints do not have its data types and the parameters of its graph functions.
# mypy: disable-error-code="attr-defined, call-overload, no-untyped-def"

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Batch, Work
from embae.datasets.loading.view_reader import ViewReader

# DALI reads this when it is imported: host memory from this size (bytes) comes from a pool. Otherwise the memory of
# each batch is mapped and unmapped, and clearing its pages takes an eighth of the loading time.
os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", "4096")

import nvidia.dali.fn as fn
import nvidia.dali.types as types
from nvidia.dali import pipeline_def

PREFETCH = 3  # batches decoded ahead


class DaliLoader:
    """Yields batches that DALI decodes.

    Args:
        work: The batches.
        device: ``cpu`` decodes on the CPU; a CUDA device decodes on the GPU (DALI's ``mixed``) and leaves images there.
        threads: CPU threads.

    Raises:
        DataError: While iterating, if the bytes of an image do not match their checksum or cannot be decoded.
    """

    name = "dali"

    def __init__(self, work: Work, *, device: torch.device, threads: int):
        self._work, self._reader = work, ViewReader(work.sampler.view, work)
        self._ahead: deque[Batch] = deque()
        self._gpu = device.type == "cuda"
        number = torch.cuda.current_device() if self._gpu and device.index is None else device.index
        self._pipeline: Any = _pipeline(
            work=work, source=self._source, decoder="mixed" if self._gpu else "cpu", batch_size=work.largest,
            num_threads=threads, device_id=number if self._gpu else None, prefetch_queue_depth=PREFETCH)
        self._pipeline.build()

    def _source(self, number: int) -> tuple[list[np.ndarray] | np.ndarray, ...]:
        if number >= len(self._work):
            raise StopIteration
        batch, draws = self._work.part(number)
        data = [np.frombuffer(image, np.uint8) for image in self._reader.read(batch.rows)]
        self._ahead.append(batch)
        return data, *(getattr(draws, name) for name in _drawn(self._work.augment))

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self._work)):
            try:
                (images,) = self._pipeline.run()
            except RuntimeError:
                self._find_undecodable()
                raise
            batch = self._ahead.popleft()
            # Without a copy: DALI keeps the memory as long as the tensor exists. Its (N, H, W, C) is channels-last for
            # torch: a MobileNetV2 step on a CPU is 1.3 times as fast with it, and GPUs prefer it.
            batch.inputs = torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)
            if self._gpu:
                # With a copy on a GPU: DALI would reuse the memory once Python releases it, while kernels read it.
                batch.inputs = batch.inputs.clone()
                copied = torch.cuda.Event()
                copied.record()
            yield batch
            if self._gpu:
                copied.synchronize()

    def _find_undecodable(self) -> None:
        """Raises an error that names the image that DALI failed on, if it cannot be decoded."""
        for batch in self._ahead:
            for row in batch.rows:
                self._reader.decode(int(row))

    def close(self) -> None:
        """Ends the threads of the pipeline and closes the shards."""
        self._pipeline = None
        self._reader.close()


def _drawn(augment: Augment) -> dict[str, tuple[types.DALIDataType, int]]:
    """The numbers that the pipeline takes, with type and dimensions; DALI rejects inputs that it does not use."""
    inputs = {"flip": (types.INT32, 0, augment.flip), "anchor": (types.FLOAT, 1, augment.crops),
              "erase": (types.FLOAT, 1, augment.erase > 0), "colour": (types.FLOAT, 1, augment.colours)}
    return {name: (kind, dimensions) for name, (kind, dimensions, used) in inputs.items() if used}


@pipeline_def
def _pipeline(work: Work, source, decoder: str):
    augment, spec, drawn = work.augment, work.spec, _drawn(work.augment)
    encoded, *arguments = fn.external_source(
        source, num_outputs=1 + len(drawn), batch=True, dtype=[types.UINT8, *(kind for kind, _ in drawn.values())],
        ndim=[1, *(dimensions for _, dimensions in drawn.values())])
    draws = dict(zip(drawn, arguments, strict=True))
    decoding: dict[str, Any] = {"device": decoder, "output_type": types.RGB, "jpeg_fancy_upsampling": True}
    cropping: dict[str, Any] = {"axes": (0, 1), "normalized_anchor": False, "normalized_shape": False}
    window = draws.get("anchor"), np.array(spec.size, np.float32)
    crop_inside = augment.crop and not augment.pad and work.stored_at_read_size
    if crop_inside:  # only the crop is decoded
        images = fn.decoders.image_slice(encoded, *window, **decoding, **cropping)
    else:
        images = fn.decoders.image(encoded, **decoding)
    if not work.stored_at_read_size:
        images = fn.resize(images, size=list(work.read_size), interp_type=types.INTERP_LINEAR, antialias=True)
    if augment.colours:
        factors = dict(zip(("brightness", "contrast", "saturation", "hue"), (draws["colour"][at] for at in range(4)),
                           strict=True))
        images = fn.color_twist(images, **factors)
    if augment.crops and not crop_inside:
        images = fn.slice(images, *window, **cropping, out_of_bounds_policy="pad", fill_values=spec.fill)
    if augment.erase:
        rectangle = draws["erase"]
        images = fn.erase(images, anchor=rectangle[0:2], shape=rectangle[2:4], axis_names="HW", fill_value=spec.fill)
    return fn.crop_mirror_normalize(
        images, mirror=draws.get("flip", 0), dtype=types.FLOAT, output_layout="HWC",
        mean=[255 * channel for channel in spec.mean], std=[255 * channel for channel in spec.std])
