"""DukeMTMC-reID: 8 cameras, in the layout of Market-1501 (Zheng et al., ICCV 2017).

DukeMTMC-reID/bounding_box_train|query|bounding_box_test/0001_c2_f0046182.jpg      person, camera
"""

from __future__ import annotations

from pathlib import Path

from embae.datasets.index.records import Record
from embae.datasets.readers.market1501 import list_bounding_boxes
from embae.datasets.readers.official_counts import Counts, check_counts
from embae.datasets.readers.reader import Reader

COUNTS = {
    "train images": 16_522, "train identities": 702, "query images": 2_228, "query identities": 702,
    "gallery images": 17_661, "gallery identities": 1_110, "cameras": 8,
}  # fmt: skip


def list_records(root: Path, *, counts: Counts = "official") -> list[Record]:
    """DukeMTMC-reID as released. It has no special pids: the 408 gallery people without a query are persons.

    Args:
        root: `DukeMTMC-reID` or the folder that contains it.
        counts: ``official`` refuses a dataset that is not complete, ``any`` takes it as it is.
    """
    return check_counts(root, list_bounding_boxes(root, "DukeMTMC-reID", roles={}), COUNTS, counts)


READER = Reader("dukemtmc", "DukeMTMC-reID, as released", list_records)
