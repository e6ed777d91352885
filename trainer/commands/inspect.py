"""``embae inspect``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.errors import DataError
from embae.datasets.files.json_files import format_json
from embae.datasets.remote.url import Url
from embae.trainer.commands.options import Debug, Json


def inspect(
    shards: Annotated[str, typer.Argument(help=(
        "A sharded dataset, such as shards/market1501, or a merged set: its folder or URL."))],
    verify: Annotated[bool, typer.Option("--verify", help="Read every image and check its checksum.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet (PNG) to this file.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the contents of a sharded dataset.

    Example: embae inspect shards/market1501 --verify --sheet market.png
    """
    from embae.datasets.index.arrow_index import Index
    from embae.datasets.index.merged import is_merged
    from embae.datasets.inspection.contact_sheet import contact_sheet
    from embae.datasets.inspection.describe import describe, format_description
    from embae.datasets.inspection.verification import verify as find_problems
    from embae.datasets.remote.url import parse_location
    place = parse_location(shards)
    if is_merged(place):
        _inspect_merged(place, as_json, reads_images=verify or bool(sheet))
        return
    index = Index.open(place)
    description = describe(index)
    problems = find_problems(index) if verify else []
    if as_json:
        print(format_json({**description, **({"problems": problems} if verify else {})}))
    else:
        print(format_description(description))
    if sheet:
        contact_sheet(index, sheet)
        print(f"contact sheet: {sheet}", file=sys.stderr)
    if problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "one problem"
        raise DataError("\n  ".join([f"{shards}: {count}", *problems]))
    if verify and not as_json:
        print(f"verified: all {len(index):,} images are as they were written")


def _inspect_merged(folder: Path | Url, as_json: bool, reads_images: bool) -> None:
    """Shows the contents of a merged set.

    Args:
        folder: Its folder.
        as_json: Print JSON.
        reads_images: Whether ``--verify`` or ``--sheet`` was given.

    Raises:
        DataError: The set cannot be opened, or `reads_images` is set: that is for one dataset.
    """
    from embae.datasets.index.merged import Merged
    from embae.datasets.inspection.describe import describe_merged, format_merged
    merged = Merged.open(folder)
    if reads_images:
        raise DataError(f"{folder} is a merged set; --verify and --sheet are for one dataset: name a member "
                        f"({', '.join(str(index.root) for index in merged.indexes)})")
    description = describe_merged(merged)
    if as_json:
        print(format_json(description))
    else:
        print(format_merged(description))
