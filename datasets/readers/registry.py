"""The readers by name. Listing them imports none of them.

A reader is a function ``records(root: Path, *, option: type = default, …) -> list[Record]`` in a file of its own. Its
signature is its whole interface: the options, their types and their choices (``Literal``) are read from it. The key of
a record may be any string that is unique in the dataset, such as a relative path; `read_records` turns it into a
WebDataset key and sorts. Pids stay as the dataset writes them. Cameras are numbered as the dataset numbers them, from
1, unless the reader says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from embae.datasets.errors import DataError
from embae.datasets.index.records import Record
from embae.datasets.readers.options import did_you_mean

Reader = Callable[..., list[Record]]

READERS = {  # source → module with its function `records`
    "market1501": "embae.datasets.readers.market1501",
    "dukemtmc": "embae.datasets.readers.dukemtmc",
    "cuhk03": "embae.datasets.readers.cuhk03",
    "cuhk01": "embae.datasets.readers.cuhk01",
    "viper": "embae.datasets.readers.viper",
    "ward": "embae.datasets.readers.ward",
    "msmt17": "embae.datasets.readers.msmt17",
    "pku-reid": "embae.datasets.readers.pku_reid",
    "luperson": "embae.datasets.readers.luperson",
    "luperson-nl": "embae.datasets.readers.luperson_nl",
    "folder": "embae.datasets.readers.folder",
    "csv": "embae.datasets.readers.table",
    "synthetic": "embae.datasets.synthetic.listing",
}


def find_reader(source: str) -> Reader:
    """The reader of a source.

    Raises:
        DataError: There is no such source.
    """
    if source not in READERS:
        raise DataError(f"unknown source {source!r}{did_you_mean(source, READERS)}")
    reader: Reader = import_module(READERS[source]).records
    return reader
