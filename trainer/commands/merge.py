"""``embae merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.errors import DataError
from embae.trainer.commands.options import Debug


def merge(
    datasets: Annotated[list[Path], typer.Argument(help="Sharded datasets, such as shards/market1501.")],
    out: Annotated[Path, typer.Option(help="Folder of the merged set, such as shards/all.")],
    weight: Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help=(
        "The weight of a dataset in labelled batches, one for each dataset. Default: the numbers of images."))] = None,
    duplicates: Annotated[bool, typer.Option("--duplicates/--no-duplicates", help=(
        "Search for images that two datasets have in common."))] = True,
    debug: Debug = False,
) -> None:
    """Group sharded datasets under one name, without copying them.

    It also lists the images that they have in common.

    Example: embae merge shards/market1501 shards/msmt17 --out shards/all --weight market1501=1 --weight msmt17=2
    """
    from embae.datasets.index.merged import DUPLICATES
    from embae.datasets.inspection.describe import describe_merged, format_merged
    from embae.datasets.merging.merge import merge as merge_datasets
    weights = dict(_weight(text) for text in weight or [])
    if len(weights) < len(weight or []):
        raise DataError("--weight: names a dataset twice; give one number for each dataset")
    merged, common = merge_datasets(datasets, out, weights, duplicates=duplicates)
    print(format_merged(describe_merged(merged)))
    if common is not None:
        for overlap in common.overlaps:
            print(f"{overlap}.")
        print(f"near-duplicates: {out / DUPLICATES}" if common.overlaps
              else "No image of one dataset is near any of another's.")


def _weight(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise DataError(f"--weight {text}: expected NAME=NUMBER, such as market1501=2") from None
