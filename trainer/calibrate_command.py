"""``embae calibrate``."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.index_writer import whole_folder
from embae.datasets.progress import note
from embae.datasets.records import Record
from embae.datasets.remote import Url
from embae.datasets.verification import check_rows
from embae.datasets.view import View
from embae.trainer.errors import ExportError, RecipeError
from embae.trainer.footage import footage, images, is_sharded, shard
from embae.trainer.options import Debug
from embae.trainer.schema import Recipe
from embae.trainer.stage_folder import EXPORT
from embae.trainer.trained import find

if TYPE_CHECKING:
    from embae.trainer.export import Export
    from embae.trainer.parts import EmbAE

ENOUGH = 32
"""Images of a camera. Rank-1 on the drawn campus: 0.31 as the model is, 0.36 with 8 images a camera, 0.44 with 16, 0.46
with 32, 0.55 with all 402 to 450; with ``--features`` 0.36 as it is, then 0.40, 0.44,
0.46 and 0.55."""

BATCH = 128
"""Images at a time, as in the recipes: the variance of a batch norm is the mean of its batches'."""

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99})(?:/(\d{1,9}))?")
Camera = tuple[str, int]


def calibrate(
    run: Annotated[Path, typer.Argument(help="A run folder, or the export folder of a stage.")],
    camera: Annotated[list[str] | None, typer.Option("--camera", metavar="NAME=IMAGES", show_default=False, help=(
        "A camera, such as station/3 (dataset/camid; a name alone is camera 0 of a dataset of that name), and a folder "
        "or quoted pattern of its images; may be given several times."))] = None,
    dataset: Annotated[str | None, typer.Option(help=(
        "All cameras of a dataset: a name below data.root, a folder or url of shards, or a folder of images with a "
        "sub-folder for each camera."))] = None,
    out: Annotated[Path | None, typer.Option(help="The export to write; by default RUN/calibrated/export.")] = None,
    stage: Annotated[str | None, typer.Option(help="Whose model; by default the last that is scored.")] = None,
    features: Annotated[bool, typer.Option("--features", help=(
        "Leave the embedding out and search by standardised features."))] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")] = False,
    debug: Debug = False,
) -> None:
    """Give a model the statistics of new cameras from unlabelled images; nothing is trained.

    Its batch norms get each camera's own, then its features, if it has no embedding, mean 0 and deviation 1 on each.
    What it has of other cameras stays. A camera needs 32 images, better some hundreds; the fewer they are, the
    nearer its statistics stay to those that all share. Labels are not looked at.

    Example: embae calibrate runs/baseline --camera station/3=footage/cam3 --camera station/4=footage/cam4
    """
    wanted = _wanted(camera or [])
    if not wanted and dataset is None:
        raise RecipeError("which cameras? Give --camera NAME=IMAGES for each, or --dataset for all of a dataset")
    trained = find(run, stage)
    recipe, source = trained.recipe, trained.export
    to = out or (run if recipe else run.resolve().parent) / "calibrated" / EXPORT
    if os.path.lexists(to):
        raise RecipeError(f"{to}: is there already; calibrate writes a new folder: give another with --out, or remove "
                          "it first")
    found = {one: images(where)[1] for one, where in wanted.items()}
    _refuse_few({one: len(records) for one, records in found.items()})
    from embae.trainer.export import Export
    export = Export.open(source)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what lies elsewhere meanwhile is removed
    with tempfile.TemporaryDirectory(prefix="embae-") as folder:
        indexes = _shard(found, Path(folder), skip_bad)
        if dataset is not None:
            indexes.append(footage(_place(dataset, recipe), keep=Path(folder), skip_bad=skip_bad))
            check_rows(indexes[-1])
        counts = _counts(indexes)
        _calibrate(export, View(indexes, "train"), recipe, to, features)
    for (name, camid), count in sorted(counts.items()):
        few = "" if count >= ENOUGH else f", which is few: below {ENOUGH} a search gains less; some hundreds are better"
        print(f"{name}/{camid}: {count:,} images{few}")
    print(f"calibrated {source}: {to}")


def _wanted(cameras: Sequence[str]) -> dict[Camera, str]:
    """Camera → its images, as they were asked for."""
    wanted: dict[Camera, str] = {}
    for text in cameras:
        name, _, where = text.partition("=")
        parts = _NAME.fullmatch(name)
        if not parts or not where:
            raise DataError(f"--camera {text}: wanted NAME=IMAGES, such as station/3=footage/cam3 for camera 3 of "
                            "station, or door=footage/door for camera 0 of door; names have letters, digits, _ and -")
        one = parts[1], int(parts[2] or 0)
        if one in wanted:
            raise DataError(f"--camera {text}: {one[0]}/{one[1]} is given twice, the first time as {wanted[one]}; "
                            "a pattern in quotes takes images of several folders")
        wanted[one] = where
    return wanted


def _place(dataset: str, recipe: Recipe | None) -> str:
    """A dataset by its name below the recipe's root, else what was given."""
    if recipe and "://" not in dataset and not os.path.isdir(dataset):
        below = recipe.data.root / dataset
        if isinstance(below, Url) or is_sharded(str(below)):
            return str(below)
    return dataset


def _shard(found: dict[Camera, list[Record]], keep: Path, skip_bad: bool) -> list[Index]:
    """The images of cameras as datasets, one for each name."""
    indexes = []
    for name in sorted({name for name, _ in found}):
        records = [replace(record, key=f"{camid}-{number}", camid=camid)
                   for (own, camid), records in found.items() if own == name for number, record in enumerate(records)]
        indexes.append(shard(name, records, keep, source={"reader": "folder"}, skip_bad=skip_bad))
    return indexes


def _counts(indexes: Sequence[Index]) -> dict[Camera, int]:
    """Images of each camera."""
    counts: Counter[Camera] = Counter()
    for index in indexes:
        view = View([index], "train")
        if twice := sorted(set(view.cameras()) & counts.keys()):
            raise DataError(f"{index.root}: has the camera {twice[0][0]}/{twice[0][1]}, which --camera gives too")
        counts.update((index.name, int(camid)) for camid in index.camid[index.rows("train")])
    _refuse_few(counts)
    return counts


def _refuse_few(counts: dict[Camera, int] | Counter[Camera]) -> None:
    for (name, camid), count in counts.items():
        if count < 2:
            raise DataError(f"{name}/{camid}: has a single image, which says nothing of how its images vary; wanted "
                            f"at least 2, better {ENOUGH}")


def _calibrate(export: Export, view: View, recipe: Recipe | None, to: Path, features: bool) -> None:
    """Puts the statistics of images into a copy of a model: by the code of a recipe's stages, in their order."""
    from embae.trainer import export as exports
    from embae.trainer.calibration import calibrate
    from embae.trainer.distributed import join, leave
    from embae.trainer.evaluate import Reading
    from embae.trainer.pass_keys import Calibrate
    model = export.restore(["backbone"] if features else None)
    reading = Reading(recipe.data.loader, recipe.data.threads, BATCH) if recipe else Reading(batch=BATCH)
    steps = _steps(model, view, features)
    world = join()
    try:
        model.to(world.device).eval()
        for what in steps:
            note(f"calibrating {what} on {len(view):,} images of {len(view.cameras())} cameras")
            calibrate(model, Calibrate.model_validate({"what": what}), view, export.spec, world, reading)
        with whole_folder(to) as folder:
            state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
            exports.write(folder, model, state, keys=export.model, spec=export.spec)
    finally:
        leave()


def _steps(model: EmbAE, view: View, features: bool) -> list[str]:
    """What to calibrate, in this order: what the other cameras have that the model is calibrated on, if there are any.

    Raises:
        ExportError: What is asked for would leave the others behind.
    """
    from embae.trainer.cameras import MEAN, SHIFT, has_table
    parts = model.parts()
    moved = [part for part in ("backbone", "embedding") if part in parts and has_table(parts[part], SHIFT)]
    others = sorted(set(model.cameras) - set(view.cameras()))
    if not others:
        return ["batch-norm"] + ["features"] * ("embedding" not in parts)
    if features and "backbone" not in moved:
        raise ExportError(f"--features: the model is calibrated on other cameras ({others[0][0]}/{others[0][1]} for "
                          "one) whose features are not standardised; start from the stage that it was calibrated "
                          "from, and give the images of all cameras")
    norms = any(has_table(module, MEAN) for module in model.modules())
    return ["batch-norm"] * norms + ["features"] * ("backbone" in moved) + ["embedding"] * ("embedding" in moved)
