"""What a sharded dataset holds, as numbers and as tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from embae.datasets.console.tables import format_pairs, format_table
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.merged import Merged
from embae.datasets.index.records import ROLES, SPLITS
from embae.datasets.index.summary import counts


def describe(index: Index) -> dict[str, Any]:
    """Counts of a dataset, from its index; plain values, fit for JSON.

    Returns:
        ``name``, ``root``, ``fingerprint``, ``images``, ``identities`` (over all splits), ``skipped`` (bad images left
        out), ``bytes`` (of the encoded images), ``shards``, ``source``, ``licence``, ``notes``, ``image`` ([height,
        width] in pixels, or None where they differ), ``height`` and ``width`` ({min, median, max} in pixels), and
        ``splits``: for each split ``images``, ``identities``, ``unlabelled``, ``roles`` (role → images) and
        ``cameras`` (camid → images).

    Raises:
        DataError: The index has values that cannot be.
    """
    index.validate()
    persons = index.pid[index.labelled & (index.role == ROLES.index("person"))]
    return {
        "name": index.name,
        "root": str(index.root),
        "fingerprint": index.fingerprint,
        "images": len(index),
        "identities": len(np.unique(persons)),
        "skipped": index.card.get("skipped", 0),
        "bytes": int(index.size.sum(dtype=np.int64)),
        "shards": len(index.shards),
        "source": index.card.get("source"),
        "licence": index.card.get("licence"),
        "notes": index.card.get("notes"),
        "image": list(index.image) if index.image else None,
        "height": _range(index.height),
        "width": _range(index.width),
        "splits": counts(index),
    }


def format_description(description: dict[str, Any]) -> str:
    """The tables of what `describe` returned."""
    return "\n\n".join([_overview(description), f"splits\n{_splits(description)}",
                        f"images per camera\n{_cameras(description)}"])


def describe_merged(merged: Merged) -> dict[str, Any]:
    """What a merged set holds, plain values: ``name``, ``root``, ``images``, ``members`` as its card has them."""
    return {"name": merged.name, "root": str(merged.root), "images": sum(member.images for member in merged.members),
            "members": [vars(member) for member in merged.members]}


def format_merged(description: dict[str, Any]) -> str:
    """The table of what `describe_merged` returned."""
    members = description["members"]
    rows = [[member["name"], *(f"{member[key]:,}" for key in ("images", "identities", "cameras")),
             f"{member['weight']:g}" if member["weight"] else "by images", member["path"]] for member in members]
    table = format_table(["dataset", "images", "identities", "cameras", "weight", "folder"], rows,
                         left=["dataset", "folder"])
    return f"{description['name']}: {len(members)} datasets, {description['images']:,} images\n{table}"


def _range(values: np.ndarray) -> dict[str, int]:
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _overview(description: dict[str, Any]) -> str:
    pairs = [("dataset", description["name"]), ("folder", description["root"]),
             ("images", f"{description['images']:,} of {description['identities']:,} identities, "
                        f"{_bytes(description['bytes'])} in {description['shards']:,} shards")]
    if description["image"]:
        pairs.append(("size", "{} × {} (height × width), all".format(*description["image"])))
    else:
        sides = (f"{side} {{min}}, {{median}}, {{max}}".format(**description[side]) for side in ("height", "width"))
        pairs.append(("size", "; ".join(sides) + " (min, median, max)"))
    if description["skipped"]:
        pairs.append(("left out", f"{description['skipped']:,} bad images, listed in skipped.txt"))
    for name in ("source", "licence", "notes", "fingerprint"):
        if value := description[name]:
            if isinstance(value, dict):
                value = ", ".join(f"{key} {entry}" for key, entry in value.items() if key != "cameras")
            pairs.append((name, str(value)))
    return format_pairs(pairs)


def _splits(description: dict[str, Any]) -> str:
    rows = []
    for split in SPLITS:
        values = description["splits"][split]
        numbers = [values["images"], values["identities"], len(values["cameras"]), values["unlabelled"]]
        rows.append([split, *(f"{number:,}" for number in [*numbers, *values["roles"].values()])])
    return format_table(["split", "images", "identities", "cameras", "unlabelled", *ROLES], rows, left=["split"])


def _cameras(description: dict[str, Any]) -> str:
    source = description["source"]
    names = {camid: name for name, camid in source.get("cameras", {}).items()} if isinstance(source, dict) else {}
    cameras = {split: description["splits"][split]["cameras"] for split in SPLITS}
    rows = [[str(camid), *([str(names.get(camid, ""))] if names else []),
             *(f"{cameras[split].get(camid, 0):,}" for split in SPLITS)]
            for camid in sorted({camid for counts in cameras.values() for camid in counts})]
    return format_table(["camera", *(["name"] if names else []), *SPLITS], rows, left=["name"])


def _bytes(size: float) -> str:
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:,.0f} bytes" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"
