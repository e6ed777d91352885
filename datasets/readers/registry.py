"""The readers by name. A reader turns a folder of original images into records.

Each reader is one file: its name and help line, its options, its layout on disk, its special pids and official counts.
To add a reader, write such a file and add a line to `READERS`; the command line, its help and its errors follow.
"""

from __future__ import annotations

from embae.datasets.readers import (
    csv_table,
    cuhk01,
    cuhk03,
    dukemtmc,
    folder,
    luperson,
    luperson_nl,
    market1501,
    msmt17,
    pku_reid,
    synthetic,
    viper,
    ward,
)
from embae.datasets.readers.reader import Reader

READERS: dict[str, Reader] = {reader.name: reader for reader in (
    market1501.READER,
    dukemtmc.READER,
    cuhk03.READER,
    cuhk01.READER,
    viper.READER,
    ward.READER,
    msmt17.READER,
    pku_reid.READER,
    luperson.READER,
    luperson_nl.READER,
    folder.READER,
    csv_table.READER,
    synthetic.READER,
)}
"""Every reader by the name that the command line uses."""
