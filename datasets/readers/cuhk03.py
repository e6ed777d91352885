"""CUHK03: 1,467 people, 5 pairs of cameras, boxes drawn by hand or by a detector (Li et al., CVPR 2014).

cuhk-03.mat                                          as released, or inside cuhk03_release/
images_labeled|images_detected/1_001_1_01.png        or its images as torchreid extracts them: pair, person, view,
                                                     image
cuhk03_new_protocol_config_labeled|detected.mat      the new protocol (Zhong et al., CVPR 2017), in the same folder

labeled/train|val/0000_00.jpg                        or camera pair 1 as a GitHub copy has it: person, image (view 1
                                                     has 00-04, view 2 05-09); val counts from 0 again
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from embae.datasets.errors import DataError
from embae.datasets.index.records import FileImage, Image, Record, Split
from embae.datasets.readers.cuhk03_mat import list_mat_images, read_new_protocol, read_test_set
from embae.datasets.readers.identity_splits import assign_splits, draw_half
from embae.datasets.readers.image_files import file_record, match_images, refuse
from embae.datasets.readers.official_counts import Counts, check_counts
from embae.datasets.readers.reader import Reader

Labels = Literal["labeled", "detected"]

CAMERAS_WITH_QUERIES = range(1, 11, 2)  # view 1 of each pair
VAL_PIDS = 1_000  # added to the copy's val people, who are not its train people
NAME = re.compile(r"^([1-5])_(\d{3})_([12])_\d{2}(\.\w+)?$")

PEOPLE = {"identities": 1_467, "cameras": 10}
COUNTS = {
    "labeled": PEOPLE | {"images": 14_096},
    "detected": PEOPLE | {"images": 14_097},
    "copy": {"identities": 843, "cameras": 2, "images": 8_177},
}
NEW_PROTOCOL = {"train identities": 767, "query identities": 700, "gallery identities": 700, "query images": 1_400}
OFFICIAL = {
    "labeled": NEW_PROTOCOL | {"train images": 7_368, "gallery images": 5_328},
    "detected": NEW_PROTOCOL | {"train images": 7_365, "gallery images": 5_332},
    "copy": {"train images": 7_239, "train identities": 743},
}


def list_records(
    root: Path,
    *,
    labels: Labels = "labeled",
    split: Literal["official", "classic", "half", "all"] = "official",
    test_set: int = 0,
    seed: int = 0,
    counts: Counts = "official",
) -> list[Record]:
    """CUHK03 from any of the layouts above, preferring the .mat file.

    A camera is one view of one pair: 1 and 2 are the views of pair 1, 9 and 10 those of pair 5. Pids are
    1000 × pair + person, whatever the split (the copy: as its names have them, val from 1000).

    Args:
        root: A folder with one of the layouts.
        labels: Boxes drawn by hand or by the detector.
        split: ``official`` is the new protocol, 767 and 700 people (the copy: its own, 743 and 100). ``classic`` tests
            on one of the 20 sets of 100 people in the .mat file and trains on all others. It is published as the mean
            over draws of a single gallery image per person, with all test images as both query and gallery; here, for a
            metric with many gallery images, view 1 is the query and view 2 the gallery. ``half`` trains on half of the
            people and tests on the others, also by view; ``all`` trains on everyone.
        test_set: Which of the classic sets, 0 to 19.
        seed: Draws the half.
        counts: ``official`` refuses a dataset that is not complete, ``any`` takes it as it is.
    """
    mat = _find_file(root, "cuhk-03.mat")
    extracted = _find_file(root, f"images_{labels}")
    copy = next((folder for folder in (root / "labeled", root) if (folder / "val").is_dir()), None)
    if mat:
        records = [_person_record(name, image) for name, image in list_mat_images(mat, labels)]
    elif extracted:
        records = [_person_record(Path(path).stem, FileImage(extracted / path))
                   for path, _ in match_images(extracted, NAME, "PAIR_PERSON_VIEW_IMAGE.png")]
    elif copy:
        if labels == "detected":
            raise DataError(f"{copy}: the detected/val of this copy repeats its labeled/val; use labels=labeled")
        records = _copy_records(copy)
    else:
        raise DataError(f"{root}: found none of cuhk-03.mat, images_{labels}, or labeled/train with labeled/val; "
                        "expected the folder with one of them")

    layout = labels if mat or extracted else "copy"
    expected = COUNTS[layout]
    if split == "official":
        expected = expected | OFFICIAL[layout]
        if layout == "copy":
            records = assign_splits(records, range(VAL_PIDS), CAMERAS_WITH_QUERIES)
        else:
            records = _apply_new_protocol(root, records, labels)
    elif split == "classic":
        if mat is None:
            raise DataError(f"{root}: split=classic needs cuhk-03.mat, which contains the test sets; add it, or use "
                            "split=half")
        test = {1_000 * pair + person for pair, person in read_test_set(mat, test_set)}
        records = assign_splits(records, {record.pid for record in records} - test, CAMERAS_WITH_QUERIES)
        expected = expected | {"train identities": 1_367}
    elif split == "half":
        records = assign_splits(records, draw_half(records, seed), CAMERAS_WITH_QUERIES)
    return check_counts(root, records, expected, counts)


def _find_file(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, root / "cuhk03_release" / name) if path.exists()), None)


def _person_record(name: str, image: Image) -> Record:
    """The record of an image from torchreid's name for it, which the new protocol uses too."""
    pair, person, view, _ = (int(part) for part in name.split("_"))
    return Record(name, "train", 1_000 * pair + person, 2 * (pair - 1) + view, image)


def _copy_records(root: Path) -> list[Record]:
    return [
        file_record(root, root / folder / path, int(match[1]) + offset, 1 if match[2] in "01234" else 2)
        for folder, offset in (("train", 0), ("val", VAL_PIDS))
        for path, match in match_images(root / folder, re.compile(r"^(\d{4})_0(\d)\.\w+$"), "PPPP_II.jpg")
    ]


def _apply_new_protocol(root: Path, records: list[Record], labels: Labels) -> list[Record]:
    config = _find_file(root, f"cuhk03_new_protocol_config_{labels}.mat")
    if config is None:
        raise DataError(
            f"{root}: split=official needs cuhk03_new_protocol_config_{labels}.mat, from the authors of the new "
            f"protocol, which was not found; put it there, or use split=half or split=all"
        )
    splits: dict[str, Split] = read_new_protocol(config)
    by_name = {record.key: record for record in records}
    refuse(config, sorted(splits.keys() - by_name.keys()), "images are missing", "extract them again")
    return [replace(by_name[name], split=split) for name, split in splits.items()]


READER = Reader("cuhk03", "CUHK03: cuhk-03.mat or its images", list_records)
