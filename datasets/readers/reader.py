"""What a reader is: a name, a help line, and a function from a folder and options to records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

from embae.datasets.index.records import Record


@dataclass(frozen=True)
class Reader:
    """A reader of one dataset or one kind of dataset.

    Attributes:
        name: As the command line names it.
        summary: One line for ``embae shard --help``.
        list_records: ``list_records(root: Path, *, option: type = default, …) -> list[Record]``. Its signature is the
            whole interface: the options, their types and their choices (``Literal``) are taken from it. The key of a
            record may be any string that is unique in the dataset, such as a relative path; `read_records` turns it
            into a WebDataset key and sorts. A reader keeps pids and camera numbers as the dataset writes them, cameras
            from 1, unless its docstring says otherwise. A reader that draws its images has no ``root``.
    """

    name: str
    summary: str
    list_records: Callable[..., list[Record]]

    @property
    def needs_root(self) -> bool:
        """Whether the reader reads a folder of original images."""
        return "root" in signature(self.list_records).parameters
