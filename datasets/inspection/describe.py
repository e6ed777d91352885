"""What a sharded dataset holds, as numbers and as tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from embae.datasets.index.arrow_index import Index
from embae.datasets.index.merged import Merged
from embae.datasets.index.records import ROLES, SPLITS
from embae.datasets.index.writer import counts


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


def render(description: dict[str, Any]) -> RenderableType:
    """The tables of what `describe` returned, for a rich console."""
    return Group(_facts(description), _splits(description), _cameras(description))


def describe_merged(merged: Merged) -> dict[str, Any]:
    """What a merged set holds, plain values: ``name``, ``root``, ``images``, ``members`` as its card has them."""
    return {"name": merged.name, "root": str(merged.root), "images": sum(member.images for member in merged.members),
            "members": [vars(member) for member in merged.members]}


def render_merged(description: dict[str, Any]) -> RenderableType:
    """The table of what `describe_merged` returned, for a rich console."""
    members = description["members"]
    table = Table(title=f"{description['name']}: {len(members)} datasets, {description['images']:,} images",
                  title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("dataset")
    for name in ("images", "identities", "cameras", "weight"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for member in members:
        counts = (f"{member[key]:,}" for key in ("images", "identities", "cameras"))
        table.add_row(member["name"], *counts, f"{member['weight']:g}" if member["weight"] else "by images",
                      member["path"])
    return table


def _range(values: np.ndarray) -> dict[str, int]:
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def _facts(description: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("dataset", description["name"])
    table.add_row("folder", description["root"])
    table.add_row("images", f"{description['images']:,} of {description['identities']:,} identities, "
                  f"{_bytes(description['bytes'])} in {description['shards']:,} shards")
    if description["image"]:
        table.add_row("size", "{} × {} (height × width), all".format(*description["image"]))
    else:
        sides = (f"{side} {{min}}, {{median}}, {{max}}".format(**description[side]) for side in ("height", "width"))
        table.add_row("size", "; ".join(sides) + " (min, median, max)")
    if description["skipped"]:
        table.add_row("left out", f"{description['skipped']:,} bad images, listed in skipped.txt")
    for name in ("source", "licence", "notes", "fingerprint"):
        if value := description[name]:
            if isinstance(value, dict):
                value = ", ".join(f"{key} {one}" for key, one in value.items() if key != "cameras")
            table.add_row(name, str(value))
    return table


def _splits(description: dict[str, Any]) -> Table:
    table = Table(title="splits", title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for name in ("images", "identities", "cameras", "unlabelled", *ROLES):
        table.add_column(name, justify="right", no_wrap=True)
    for split in SPLITS:
        values = description["splits"][split]
        numbers = [values["images"], values["identities"], len(values["cameras"]), values["unlabelled"]]
        table.add_row(split, *(f"{n:,}" for n in [*numbers, *values["roles"].values()]))
    return table


def _cameras(description: dict[str, Any]) -> Table:
    table = Table(title="images per camera", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("camera", justify="right")
    source = description["source"]
    named = {camid: name for name, camid in source.get("cameras", {}).items()} if isinstance(source, dict) else {}
    if named:
        table.add_column("name", overflow="fold")
    for split in SPLITS:
        table.add_column(split, justify="right")
    cameras = {split: description["splits"][split]["cameras"] for split in SPLITS}
    for camid in sorted({camid for found in cameras.values() for camid in found}):
        called = [str(named.get(camid, ""))] if named else []
        table.add_row(str(camid), *called, *(f"{cameras[split].get(camid, 0):,}" for split in SPLITS))
    return table


def _bytes(size: float) -> str:
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:,.0f} bytes" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"
