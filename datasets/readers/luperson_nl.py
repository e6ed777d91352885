"""LUPerson-NL: 10 million people from the videos of LUPerson, labelled by a tracker (Fu et al., CVPR 2022).

COUNTRY/CITY/VIDEO/000017_0000123_04.jpg    as the authors' extract.py writes them: pid, frame, person in the frame
lmdb/data.mdb                               as their convert_lmdb.py writes them: keys VIDEO_PID_FRAME_PERSON
"""

from __future__ import annotations

import re
from pathlib import Path

from embae.datasets.index.records import FileImage, Record
from embae.datasets.readers.image_files import match_images
from embae.datasets.readers.label_numbers import number_names
from embae.datasets.readers.lmdb_images import find_environment, match_keys
from embae.datasets.readers.reader import Reader

KEY = re.compile(r"(\d+)_(\d+)_\d+_\d+")
PATH = re.compile(r"^(.+)/(\d+)_\d+_\d+\.\w+$")


def list_records(root: Path) -> list[Record]:
    """All images train; a pid is what the tracker took for one person, a video is a camera, numbered from 0.

    The layouts are known from the authors' code (github.com/DengpanFu/LUPerson-NL), which treats pids as unique over
    all videos; some pids are wrong. In LMDB a camera is the number that the authors gave to the video.

    Args:
        root: The folder of images (their ``lup-nl``), the LMDB environment, or the folder that has it (``lupnl_lmdb``).
    """
    if environment := find_environment(root):
        images = match_keys(environment, KEY, "VIDEO_PID_FRAME_PERSON")
        return [Record(image.key, "train", int(match[2]), int(match[1]), image) for image, match in images]
    files = match_images(root, PATH, "VIDEO/PID_FRAME_PERSON.jpg")
    cameras = number_names(match[1] for _, match in files)
    return [Record(path, "train", int(match[2]), cameras[match[1]], FileImage(root / path)) for path, match in files]


READER = Reader("luperson-nl", "LUPerson-NL: image folders or LMDB", list_records)
