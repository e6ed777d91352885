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
    """A source of the encoded bytes of an image; picklable, so that worker processes can read it.

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
    """One image of a dataset with the labels that its reader found.

    Attributes:
        key: Unique within the dataset; letters, digits, ``_`` and ``-`` only (a WebDataset key has no dot).
        split: ``train``, ``query`` or ``gallery``.
        pid: Identity, unique within the dataset; None if unknown.
        camid: The physical camera.
        image: Source of the encoded bytes.
        role: ``person``; ``distractor`` is scored as a negative for every query; ``junk`` is ignored by the metric.
            Only the reader of a dataset knows the meaning of its special pids: no other code tests pid values.
        camera: The owner's name of the camera, where the reader numbers the cameras itself; stored in the card.
    """

    key: str
    split: Split
    pid: int | None
    camid: int
    image: Image
    role: Role = "person"
    camera: str | None = None


def camera_names(records: Iterable[Record]) -> dict[str, int]:
    """Name → camid of the cameras that have a name, sorted by camid and name."""
    named = {(record.camid, record.camera) for record in records if record.camera is not None}
    return {name: camid for camid, name in sorted(named)}
