"""``embae merge``, and what ``embae inspect`` says of a merged set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.errors import DataError
from embae.datasets.remote import Url


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
    from rich.console import Console

    from embae.datasets import merged
    from embae.datasets.inspection import describe_merged, render_merged
    weights = dict(_weight(text) for text in weight or [])
    if len(weights) < len(weight or []):
        raise DataError("--weight: names a dataset twice; give each one number")
    found, common = merged.merge(datasets, out, weights, duplicates=duplicates)
    Console(soft_wrap=True).print(render_merged(describe_merged(found)))
    if common is not None:
        for overlap in common.overlaps:
            print(f"{overlap}.")
        print(f"near-duplicates: {out / merged.DUPLICATES}" if common.overlaps
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
    from rich.console import Console

    from embae.datasets.inspection import describe_merged, render_merged
    from embae.datasets.merged import Merged
    merged = Merged.open(folder)
    if looked_into:
        raise DataError(f"{folder} is a merged set; --verify and --sheet look into one dataset: name a member "
                        f"({', '.join(str(index.root) for index in merged.indexes)})")
    description = describe_merged(merged)
    if as_json:
        print(json.dumps(description, indent=1))
    else:
        Console(soft_wrap=True).print(render_merged(description))


def _weight(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise DataError(f"--weight {text}: wanted NAME=NUMBER, such as market1501=2") from None
