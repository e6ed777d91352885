"""``embae shard``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.errors import DataError
from embae.datasets.readers.registry import READERS
from embae.trainer.commands.options import Debug


def shard(
    source: Annotated[str, typer.Argument(autocompletion=lambda: list(READERS), help=(
        "\b\n" + "\n".join(f"{reader.name:12} {reader.summary}" for reader in READERS.values())
        + "\n\nThe source determines how folders and file names are read."))],
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its options.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the original images.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the sharded datasets.")] = Path("shards"),
    name: Annotated[str | None, typer.Option(help="Name of the dataset. Default: the name of the source.")] = None,
    size: Annotated[str | None, typer.Option(help="Store images at HEIGHTxWIDTH, such as 288x144.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and list undecodable images.")] = False,
    join: Annotated[bool, typer.Option("--join", help="Share the work with machines that run the same.")] = False,
    debug: Debug = False,
) -> None:
    """Turn a folder of images into WebDataset shards with an index.

    Example: embae shard market1501 --root /data/Market-1501 --out shards --size 288x144
    """
    from embae.datasets.readers.read import read_records
    from embae.datasets.sharding.options import ShardOptions
    from embae.datasets.sharding.write_shards import write_shards
    chosen = dict(_pair(option) for option in options or [])
    records = read_records(source, root, chosen)
    about = {"reader": source, "root": str(root.resolve()) if root else None, "options": chosen}
    index = write_shards(
        name or source,
        records,
        out,
        source=about,
        options=ShardOptions(size=_size(size), workers=workers, skip_bad=skip_bad, join=join),
    )
    print(f"{index.root}: {len(index):,} images in {len(index.shards)} shards")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise DataError(f"{text!r}: expected KEY=VALUE, such as split=half")
    return key, value


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not match:
        raise DataError(f"--size {text}: expected HEIGHTxWIDTH in pixels, such as 288x144")
    return int(match[1]), int(match[2])
