"""LUPerson-NL: 10 million people from the videos of LUPerson, labelled by a tracker (Fu et al., CVPR 2022).

COUNTRY/CITY/VIDEO/000017_0000123_04.jpg    as the authors' extract.py writes them: pid, frame, person in the frame
lmdb/data.mdb                               as their convert_lmdb.py writes them: keys VIDEO_PID_FRAME_PERSON
"""

from __future__ import annotations

import re
from pathlib import Path

from embae.datasets.index.records import FileImage, Record
from embae.datasets.readers import lmdb_images
from embae.datasets.readers.image_files import matches
from embae.datasets.readers.label_numbers import numbered_names

KEY = re.compile(r"(\d+)_(\d+)_\d+_\d+")
PATH = re.compile(r"^(.+)/(\d+)_\d+_\d+\.\w+$")


def records(root: Path) -> list[Record]:
    """All of it trains; a pid is what the tracker took for one person, a video is a camera, numbered from 0.

    The layouts are known from the authors' code (github.com/DengpanFu/LUPerson-NL), which takes pids for unique over
    all videos; some are wrong. In LMDB a camera is the number that they gave the video.

    Args:
        root: The folder of images (their ``lup-nl``), the LMDB environment, or the folder that has it (``lupnl_lmdb``).
    """
    if environment := lmdb_images.find(root):
        keyed = lmdb_images.matches(environment, KEY, "VIDEO_PID_FRAME_PERSON")
        return [Record(image.key, "train", int(match[2]), int(match[1]), image) for image, match in keyed]
    found = matches(root, PATH, "VIDEO/PID_FRAME_PERSON.jpg")
    cameras = numbered_names(match[1] for _, match in found)
    return [Record(path, "train", int(match[2]), cameras[match[1]], FileImage(root / path)) for path, match in found]
