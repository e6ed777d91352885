"""``dataset.yaml``, the card of a sharded dataset. It is written last, so it marks a complete dataset."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from embae.datasets.errors import DataError
from embae.datasets.files.plain import read_bytes
from embae.datasets.files.plain_tree import MOST
from embae.datasets.files.yaml_files import parse_yaml
from embae.datasets.index.records import SPLITS
from embae.datasets.remote.url import Url

# Files of scores and embeddings are named after a dataset.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
FORMAT = 1
CARD = "dataset.yaml"
MERGED = "merged.yaml"  # the card of a merged set, see `merged_card.py`
PARTIAL = ".partial"  # suffix of the folder that `embae shard` works in
REMEDY = "remove the folder and shard the dataset again (embae shard)"


def datasets_in(root: Path) -> list[str]:
    """Names of the complete datasets in a folder, sorted; empty if the folder does not exist."""
    if not os.path.isdir(root):
        return []
    return sorted(p.name for p in root.iterdir() if (p / CARD).is_file() and not p.name.endswith(PARTIAL))


def read_card(folder: Path | Url) -> dict[str, Any]:
    """Reads and checks ``dataset.yaml``.

    Raises:
        DataError: The card is missing (the message names other datasets), unreadable, or of another format.
    """
    path = folder / CARD
    if isinstance(path, Path) and not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise DataError(_missing(path.parent))
    try:
        data = path.read(MOST) if isinstance(path, Url) else read_bytes(path, MOST)
        card = parse_yaml(data.decode(), number_keys=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); {REMEDY}") from error
    if not isinstance(card, dict) or "format" not in card:
        raise DataError(f"{path} is not the card of a sharded dataset: it has no 'format'; {REMEDY}")
    if card["format"] != FORMAT:
        raise DataError(
            f"{path} has format {card['format']!r}, this version of embae reads format {FORMAT}; "
            "shard the dataset again with this version, or use the version that wrote it"
            + (f" ({card['embae']})" if "embae" in card else "")
        )
    image, name = card.get("image", "missing"), card.get("name")
    missing = [
        expected
        for expected, ok in (
            ("name: up to 100 letters, digits, _ and -", isinstance(name, str) and NAME.fullmatch(name)),
            ("fingerprint: text", isinstance(card.get("fingerprint"), str)),
            ("image: [height, width] or null", image is None or _is_size(image)),
            ("counts: a mapping with 'images' for each split", _has_counts(card.get("counts"))),
        )
        if not ok
    ]
    if missing:
        raise DataError(f"{path} does not have {list_some(missing)}; {REMEDY}")
    return card


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int and v > 0 for v in value)


def _has_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(split), dict) and type(value[split].get("images")) is int for split in SPLITS
    )


def _missing(folder: Path) -> str:
    contained, siblings = datasets_in(folder), datasets_in(folder.parent)
    if not os.path.exists(folder):
        text = f"{folder}: no such dataset"
    elif not os.path.isdir(folder):
        text = f"{folder} is a file; expected the folder of a sharded dataset"
    elif os.path.isfile(folder / MERGED):
        return f"{folder} is a merged set ({MERGED}), which stands for several datasets; expected one: name a member"
    else:
        text = f"{folder} is not a complete dataset: it has no {CARD}"
    if contained:
        text += f"; it contains the datasets {', '.join(contained)}: name one of them"
    elif siblings:
        text += f"; datasets beside it: {', '.join(siblings)}"
    else:
        text += f"; there are no datasets in {folder.parent}"
    if os.path.isdir(folder.parent / (folder.name + PARTIAL)):
        return text + f"; its sharding was interrupted ({folder.name + PARTIAL}): run the same embae shard again"
    return text + "; make one with embae shard"


def list_some(names: list[str], most: int = 5) -> str:
    """The first few names and how many more there are, for a message."""
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")
