"""MATLAB files of CUHK03: `cuhk-03.mat` (HDF5) and the configuration of the new protocol (MATLAB 5).

HDF5 has MATLAB's axes in reverse order. In `cuhk-03.mat`, `labeled` and `detected` are cells of 5 camera pairs, each a
cell of people × 10 images, where an image that does not exist is an empty array; `testsets` are 20 arrays of (pair,
person), both from 1.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embae.datasets.errors import DataError
from embae.datasets.index.records import SPLITS, Split

_LOCK = threading.Lock()  # closing an HDF5 file may interrupt another thread that reads the same file


@dataclass(frozen=True)
class MatImage:
    """An image inside an HDF5 file, by the path of its array; it is read as PNG, which is lossless."""

    mat: Path
    array: str

    def read(self) -> bytes:
        import io

        import h5py
        import PIL.Image

        with _LOCK, h5py.File(self.mat, "r") as file:
            pixels = file[self.array][()].T  # (3, W, H) → (H, W, 3)
        encoded = io.BytesIO()
        PIL.Image.fromarray(pixels).save(encoded, "PNG")
        return encoded.getvalue()

    def __str__(self) -> str:
        return f"{self.mat}:{self.array}"


def list_mat_images(mat: Path, labels: str) -> list[tuple[str, MatImage]]:
    """Every image with torchreid's name for it, `PAIR_PERSON_VIEW_IMAGE`; images 1 to 5 belong to view 1."""
    images = []
    with _open_release(mat) as file:
        for pair, reference in enumerate(file[labels][0], 1):
            for shot, row in enumerate(file[reference][()], 1):
                for person, cell in enumerate(row, 1):
                    array = file[cell]
                    if array.ndim == 3:
                        name = f"{pair}_{person:03d}_{1 if shot <= 5 else 2}_{shot:02d}"
                        images.append((name, MatImage(mat, array.name)))
    return images


def read_test_set(mat: Path, number: int) -> set[tuple[int, int]]:
    """Pair and person of everyone in a classic test set."""
    with _open_release(mat) as file:
        sets = file["testsets"][0]
        if not 0 <= number < len(sets):
            raise DataError(f"test_set={number}: expected 0 to {len(sets) - 1}")
        pairs, people = file[sets[number]][()]
        return {(int(pair), int(person)) for pair, person in zip(pairs, people, strict=True)}


@contextmanager
def _open_release(mat: Path) -> Iterator[Any]:
    """The open file; content that differs from the release becomes a DataError."""
    import h5py

    try:
        with h5py.File(mat, "r") as file:
            yield file
    except DataError:
        raise
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{mat}: not the cuhk-03.mat of the release: {error}; download it again") from None


def read_new_protocol(config: Path) -> dict[str, Split]:
    """The split of every image by its name without suffix."""
    import numpy
    import scipy.io
    from scipy.io.matlab import MatReadError

    try:
        content = scipy.io.loadmat(config, squeeze_me=True)
        names = [str(name).removesuffix(".png") for name in numpy.atleast_1d(content["filelist"])]
        return {names[index - 1]: split for split in SPLITS for index in numpy.atleast_1d(content[f"{split}_idx"])}
    except (OSError, KeyError, ValueError, IndexError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{config}: not a configuration of the new protocol: {error}; download it again") from None
