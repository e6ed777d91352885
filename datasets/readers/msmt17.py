"""MSMT17: 4,101 people, 15 cameras (Wei et al., CVPR 2018).

MSMT17_V1/list_train|val|query|gallery.txt       lines `0000/0000_000_01_0303morning_0008_0.jpg 0`: path, person
MSMT17_V1/train/…  test/…                        in V2 mask_train_v2/… and mask_test_v2/…
"""

from __future__ import annotations

from pathlib import Path

from embae.datasets.errors import DataError
from embae.datasets.index.records import Record, Split
from embae.datasets.readers.image_files import file_record, find_folder, path_inside, refuse
from embae.datasets.readers.official_counts import Counts, check_counts
from embae.datasets.readers.reader import Reader

LISTS: dict[str, Split] = {"train": "train", "val": "train", "query": "query", "gallery": "gallery"}
TEST_PIDS = 10_000  # test people are not training people, but the dataset numbers both from 0
COUNTS = {
    "train images": 32_621, "train identities": 1_041, "query images": 11_659, "query identities": 3_060,
    "gallery images": 82_161, "gallery identities": 3_060, "cameras": 15,
}  # fmt: skip


def list_records(root: Path, *, counts: Counts = "official") -> list[Record]:
    """MSMT17 as released, either version; training is list_train and list_val together, as published.

    Person 0 is a person. Test people have 10,000 added to their number, so that a pid is one person.

    Args:
        root: The folder with the lists, or the one that contains it as `MSMT17_V1`, `MSMT17_V2` or `MSMT17`.
        counts: ``official`` refuses a dataset that is not complete, ``any`` takes it as it is.
    """
    home = find_folder(root, [f"list_{name}.txt" for name in LISTS], ["MSMT17_V1", "MSMT17_V2", "MSMT17"])
    train, test = ("mask_train_v2", "mask_test_v2") if (home / "mask_train_v2").exists() else ("train", "test")
    find_folder(home, [train, test])
    records = []
    for name, split in LISTS.items():
        list_file = home / f"list_{name}.txt"
        folder, offset = (home / train, 0) if split == "train" else (home / test, TEST_PIDS)
        rows = [_parse_line(list_file, line) for line in list_file.read_text().splitlines() if line.strip()]
        missing = [path for path, _, _ in rows if not (path_inside(folder, path) and (folder / path).is_file())]
        refuse(list_file, missing, f"images are not in {folder}", "unpack the archive again")
        records += [file_record(home, folder / path, pid + offset, camid, split) for path, pid, camid in rows]
    return check_counts(root, records, COUNTS, counts)


def _parse_line(list_file: Path, line: str) -> tuple[str, int, int]:
    """Path, pid and camera of a line."""
    try:
        path, pid = line.rsplit(maxsplit=1)
        return path, int(pid), int(path.split("_")[2])
    except (ValueError, IndexError):
        expected = "`path pid`, with the camera as the path's third _ field"
        raise DataError(f"{list_file}: found {line!r}; expected lines {expected}; unpack the archive again") from None


READER = Reader("msmt17", "MSMT17, version 1 or 2, as released", list_records)
