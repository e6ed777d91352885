"""One image of a dataset, before it is sharded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Split = Literal["train", "query", "gallery"]
Role = Literal["person", "distractor", "junk"]

SPLITS: tuple[Split, ...] = ("train", "query", "gallery")
ROLES: tuple[Role, ...] = ("person", "distractor", "junk")


class Image(Protocol):
    """Where the encoded bytes of an image come from; picklable, so that worker processes can read it.

    ``str(image)`` names the source in error messages.
    """

    def read(self) -> bytes:
        """Encoded bytes (JPEG, PNG, BMP, …); several threads may read different images at once."""
        ...


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file on disk."""

    path: Path

    def read(self) -> bytes:
        return self.path.read_bytes()

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a dataset and what its reader knows about it.

    Attributes:
        key: Unique within the dataset; letters, digits, ``_`` and ``-`` only (a WebDataset key has no dot).
        split: ``train``, ``query`` or ``gallery``.
        pid: Identity, unique within the dataset; None where it is not known.
        camid: One physical camera of the dataset.
        image: Where the bytes come from.
        role: ``person``; ``distractor`` is scored as a negative for every query; ``junk`` is ignored by the metric.
            Only the reader of a dataset knows what its special pids mean: nothing else tests pid values.
        camera: What the images' owner calls the camera, where the reader numbers what it finds; kept in the card.
    """

    key: str
    split: Split
    pid: int | None
    camid: int
    image: Image
    role: Role = "person"
    camera: str | None = None


def camera_names(records: Iterable[Record]) -> dict[str, int]:
    """Name → camid of the cameras that have a name, by camid and name."""
    named = {(record.camid, record.camera) for record in records if record.camera is not None}
    return {name: camid for camid, name in sorted(named)}
