"""``embae shard``, ``embae inspect`` and ``embae merge``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.errors import DataError
from embae.datasets.remote.url import Url
from embae.trainer.commands.options import Debug, Json


def shard(
    source: Annotated[str, typer.Argument(help="market1501, dukemtmc, cuhk03, cuhk01, viper, ward, msmt17, pku-reid, "
                                               "luperson, luperson-nl, folder, csv or synthetic.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="The source's options.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the original images.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all sharded datasets.")] = Path("shards"),
    name: Annotated[str | None, typer.Option(help="The dataset's name; by default the source's.")] = None,
    size: Annotated[str | None, typer.Option(help="Store images at HEIGHTxWIDTH, such as 288x144.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out, and list, what cannot be decoded.")] = False,
    join: Annotated[bool, typer.Option("--join", help="Share the work with machines that are given the same.")] = False,
    debug: Debug = False,
) -> None:
    """Turn a folder of images into WebDataset shards with an index.

    Example: embae shard market1501 --root /data/Market-1501 --out shards --size 288x144
    """
    from embae.datasets.readers import read
    from embae.datasets.sharding.write_shards import write_shards
    chosen = dict(_pair(option) for option in options or [])
    records = read(source, root, chosen)
    about = {"reader": source, "root": str(root.resolve()) if root else None, "options": chosen}
    index = write_shards(name or source, records, out, source=about, size=_size(size), workers=workers,
                         skip_bad=skip_bad, join=join)
    print(f"{index.root}: {len(index):,} images in {len(index.shards)} shards")


def inspect(
    shards: Annotated[str, typer.Argument(help=(
        "A sharded dataset, such as shards/market1501, a merged set, or the url of one."))],
    verify: Annotated[bool, typer.Option("--verify", help="Read every image and check its checksum.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet (PNG) here.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a sharded dataset holds.

    Example: embae inspect shards/market1501 --verify --sheet market.png
    """
    from embae.datasets.index.arrow_index import Index
    from embae.datasets.index.merged import is_merged
    from embae.datasets.inspection.contact_sheet import contact_sheet
    from embae.datasets.inspection.describe import describe, format_description
    from embae.datasets.inspection.verification import verify as find_problems
    from embae.datasets.remote.url import location
    place = location(shards)
    if is_merged(place):
        inspect_merged(place, as_json, looked_into=verify or bool(sheet))
        return
    index = Index.open(place)
    description = describe(index)
    problems = find_problems(index) if verify else []
    if as_json:
        print(json.dumps({**description, **({"problems": problems} if verify else {})}, indent=1))
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


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise DataError(f"{text!r}: found no key=value; options are written like split=half")
    return key, value


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not found:
        raise DataError(f"--size {text}: wanted HEIGHTxWIDTH in pixels, such as 288x144")
    return int(found[1]), int(found[2])


def merge(
    datasets: Annotated[list[Path], typer.Argument(help="Sharded datasets, such as shards/market1501 shards/msmt17.")],
    out: Annotated[Path, typer.Option(help="Folder of the merged set, such as shards/all; recipes name it so.")],
    weight: Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help=(
        "A dataset's share of the labelled batches, for each dataset; by default they go by their images."))] = None,
    duplicates: Annotated[bool, typer.Option("--duplicates/--no-duplicates", help=(
        "Look for images that two datasets have in common."))] = True,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Give several sharded datasets one name, without copying them, and say which images they have in common.

    Example: embae merge shards/market1501 shards/msmt17 --out shards/all --weight market1501=1 --weight msmt17=2
    """
    from embae.datasets.index.merged import DUPLICATES
    from embae.datasets.inspection.describe import describe_merged, format_merged
    from embae.datasets.merging.merge import merge as merge_datasets
    weights = dict(_weight(text) for text in weight or [])
    if len(weights) < len(weight or []):
        raise DataError("--weight: names a dataset twice; give each one number")
    found, common = merge_datasets(datasets, out, weights, duplicates=duplicates)
    print(format_merged(describe_merged(found)))
    if common is not None:
        for overlap in common.overlaps:
            print(f"{overlap}.")
        print(f"near-duplicates: {out / DUPLICATES}" if common.overlaps
              else "No image of one dataset is near any of another's.")


def inspect_merged(folder: Path | Url, as_json: bool, looked_into: bool) -> None:
    """What is in a merged set.

    Args:
        folder: Its folder.
        as_json: As JSON.
        looked_into: Whether more was asked for than its card says.

    Raises:
        DataError: It cannot be opened, or more was asked for.
    """
    from embae.datasets.index.merged import Merged
    from embae.datasets.inspection.describe import describe_merged, format_merged
    merged = Merged.open(folder)
    if looked_into:
        raise DataError(f"{folder} is a merged set; --verify and --sheet look into one dataset: name a member "
                        f"({', '.join(str(index.root) for index in merged.indexes)})")
    description = describe_merged(merged)
    if as_json:
        print(json.dumps(description, indent=1))
    else:
        print(format_merged(description))


def _weight(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise DataError(f"--weight {text}: wanted NAME=NUMBER, such as market1501=2") from None
