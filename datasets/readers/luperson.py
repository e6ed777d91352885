"""LUPerson: 4 million unlabelled people from street videos (Fu et al., CVPR 2021).

COUNTRY/CITY[/VIDEO]/00000123_0004.jpg            as the authors' extract.py writes them: frame, person in the frame
lup_lmdb/data.mdb                                 as their convert_lmdb.py writes them: keys COUNTRY_CITY_VIDEO_IMAGE
"""

from __future__ import annotations

import re
from pathlib import Path

from embae.datasets.index.records import FileImage, Record
from embae.datasets.readers.image_files import list_images
from embae.datasets.readers.label_numbers import number_names
from embae.datasets.readers.lmdb_images import find_environment, match_keys
from embae.datasets.readers.reader import Reader

KEY = re.compile(r"(\d+_\d+_\d+)_\d+")


def list_records(root: Path) -> list[Record]:
    """All images train and none has a pid; each video is a camera, numbered from 0 in sorted order.

    The layouts are known from the authors' code (github.com/DengpanFu/LUPerson). Where extract.py wrote the images of a
    city's videos into one folder, that folder counts as one camera.

    Args:
        root: The folder of images (their ``luperson``), the LMDB environment (``lup_lmdb``), or the folder with it.
    """
    if environment := find_environment(root):
        images = match_keys(environment, KEY, "COUNTRY_CITY_VIDEO_IMAGE")
        cameras = number_names(match[1] for _, match in images)
        return [Record(image.key, "train", None, cameras[match[1]], image) for image, match in images]
    paths = list_images(root)
    cameras = number_names(path.rpartition("/")[0] for path in paths)
    return [Record(path, "train", None, cameras[path.rpartition("/")[0]], FileImage(root / path)) for path in paths]


READER = Reader("luperson", "LUPerson: image folders or LMDB", list_records)
