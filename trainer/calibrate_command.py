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

import numpy as np
import typer

from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.index_writer import whole_folder
from embae.datasets.progress import note
from embae.datasets.records import Record
from embae.datasets.verification import check_rows
from embae.datasets.view import View
from embae.trainer.errors import ExportError, RecipeError
from embae.trainer.extract_command import Name, Pattern, SkipBad
from embae.trainer.footage import images, pointed_at, shard
from embae.trainer.importing import uncollected
from embae.trainer.known_cameras import Camera, Known, tell
from embae.trainer.options import Debug, check_writable
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

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99})(?:/(.+))?")
Said = tuple[str, str]
"""A dataset and a camera, as they were given."""


def calibrate(
    run: Annotated[Path, typer.Argument(help="A run folder, the folder of a stage, or an export.")],
    camera: Annotated[list[str] | None, typer.Option("--camera", metavar="NAME=IMAGES", show_default=False, help=(
        "A camera, by dataset and name or number, such as station/door or station/3 (a name alone is camera 0 of a "
        "dataset of that name), and a folder or quoted pattern of its images; may be given several times."))] = None,
    dataset: Annotated[str | None, typer.Option(help=(
        "All cameras of a dataset: a name below data.root, a folder or url of shards, a merged set, or a folder of "
        "images with a sub-folder for each camera."))] = None,
    out: Annotated[Path | None, typer.Option(help="The export to write; by default RUN/calibrated/export.")] = None,
    stage: Annotated[str | None, typer.Option(help="Whose model; by default the last that is scored.")] = None,
    features: Annotated[bool, typer.Option("--features", help=(
        "Leave the embedding out and search by standardised features."))] = False,
    name: Name = None,
    pattern: Pattern = None,
    skip_bad: SkipBad = False,
    debug: Debug = False,
) -> None:
    """Give a model the statistics of new cameras from unlabelled images; nothing is trained.

    Its batch norms get each camera's own, then its features, if it has no embedding, mean 0 and deviation 1 on each.
    What it has of other cameras stays. A camera needs 32 images, better some hundreds; the fewer they are, the
    nearer its statistics stay to those that all share. Labels are not looked at.

    Example: embae calibrate runs/baseline --camera station/door=footage/door --camera station/hall=footage/hall
    """
    wanted = _wanted(camera or [])
    if not wanted and dataset is None:
        raise RecipeError("which cameras? Give --camera NAME=IMAGES for each, or --dataset for all of a dataset")
    if dataset is None and (name or pattern):
        raise RecipeError(f"--{'name' if name else 'pattern'}: goes with --dataset; --camera says itself which camera "
                          "of which dataset its images are from")
    trained = find(run, stage)
    recipe, source = trained.recipe, trained.export
    to = out or (run if recipe else source.resolve().parent) / "calibrated" / EXPORT
    if os.path.lexists(to):
        raise RecipeError(f"{to}: is there already; calibrate writes a new folder: give another with --out, or remove "
                          "it first")
    check_writable("--out", to)
    found = {one: images(where)[1] for one, where in wanted.items()}
    for one, records in found.items():
        _refuse_few("/".join(one), len(records))
    with uncollected():
        from embae.trainer.export import Export
    export = Export.open(source)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what lies elsewhere meanwhile is removed
    with tempfile.TemporaryDirectory(prefix="embae-") as folder:
        indexes = _shard(found, export.known, Path(folder), skip_bad)
        if dataset is not None:
            pointed = pointed_at(dataset, trained.root, name=name, pattern=pattern, keep=Path(folder),
                                 skip_bad=skip_bad)
            for index in pointed.indexes:
                check_rows(index)
            indexes += _apart(pointed.indexes, found)
        view = View(indexes, "train")
        counts = _counts(view)
        _calibrate(export, view, recipe, to, features)
    for said, count in sorted(counts.items()):
        few = "" if count >= ENOUGH else f", which is few: below {ENOUGH} a search gains less; some hundreds are better"
        print(f"{said}: {count:,} images{few}")
    print(f"calibrated {source}: {to}")


def _wanted(cameras: Sequence[str]) -> dict[Said, str]:
    """Camera → its images, as they were asked for."""
    wanted: dict[Said, str] = {}
    for text in cameras:
        name, _, where = text.partition("=")
        parts = _NAME.fullmatch(name)
        if not parts or not where:
            raise DataError(f"--camera {text}: wanted NAME=IMAGES, such as station/door=footage/door for the camera "
                            "door of station, or door=footage/door for camera 0 of door; names of datasets have "
                            "letters, digits, _ and -")
        one = parts[1], parts[2] or "0"
        if one in wanted:
            raise DataError(f"--camera {text}: {'/'.join(one)} is given twice, the first time as {wanted[one]}; "
                            "a pattern in quotes takes images of several folders")
        wanted[one] = where
    return wanted


def _shard(found: dict[Said, list[Record]], known: Known, keep: Path, skip_bad: bool) -> list[Index]:
    """The images of cameras as datasets, one for each name."""
    cameras = _numbered(list(found), known)
    indexes = []
    for name in sorted({name for name, _ in found}):
        records = []
        for said, own in found.items():
            if said[0] == name:
                (_, camid), camera = cameras[said]
                records += [replace(record, key=f"{camid}-{number}", camid=camid, camera=camera)
                            for number, record in enumerate(own)]
        indexes.append(shard(name, records, keep, source={"reader": "folder"}, skip_bad=skip_bad))
    return indexes


def _numbered(given: Sequence[Said], known: Known) -> dict[Said, tuple[Camera, str | None]]:
    """Camera, and its name if it has one, of each that was given: as the model knows it, or a new one."""
    found: dict[Said, tuple[Camera, str | None]] = {}
    taken = list(known.cameras)
    for dataset, said in sorted(given, key=lambda one: not _is_number(one[1])):  # numbers first: names get others
        place = known.called(dataset, said)
        if place >= 0:
            camera = known.cameras[place]
            name = known.names.get(camera)
        elif _is_number(said):
            camera, name = (dataset, int(said)), None
        else:
            camera = dataset, max((camid for other, camid in taken if other == dataset), default=-1) + 1
            name = said
        if twice := [other for (_, other), (own, _) in found.items() if own == camera]:
            raise DataError(f"--camera {dataset}/{said}: is given twice, the first time as {dataset}/{twice[0]}; "
                            "a pattern in quotes takes images of several folders")
        found[dataset, said] = camera, name
        taken.append(camera)
    return found


def _is_number(said: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", said) is not None


def _apart(indexes: Sequence[Index], found: dict[Said, list[Record]]) -> Sequence[Index]:
    """A dataset's indexes, of none of which a camera was given by itself: they would be numbered apart."""
    for index in indexes:
        if own := [f"{name}/{said}" for name, said in found if name == index.name]:
            raise DataError(f"{index.root}: --camera gives cameras of {index.name} too ({', '.join(own)}); put their "
                            "images into its folder, or give its cameras one by one")
    return indexes


def _counts(view: View) -> dict[str, int]:
    """Images of each camera."""
    rows = np.arange(len(view))
    every = Counter(zip(view.locate(rows)[0].tolist(), view.column("camid", rows).tolist(), strict=True))
    counts = {}
    for (number, camid), count in every.items():
        camera = view.names[number], camid
        said = f"{camera[0]}/{view.camera_names.get(camera, camid)}"
        _refuse_few(said, count)
        counts[said] = count
    return counts


def _refuse_few(said: str, count: int) -> None:
    if count < 2:
        raise DataError(f"{said}: has a single image, which says nothing of how its images vary; wanted at least 2, "
                        f"better {ENOUGH}")


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
    own = set(model.known.numbers(view, np.arange(len(view))).tolist())
    others = [camera for number, camera in enumerate(model.cameras) if number not in own]
    if not others:
        return ["batch-norm"] + ["features"] * ("embedding" not in parts)
    if features and "backbone" not in moved:
        raise ExportError("--features: the model is calibrated on other cameras "
                          f"({tell(others, model.known.names)}) whose features are not standardised; start from the "
                          "stage that it was calibrated from, and give the images of all cameras")
    norms = any(has_table(module, MEAN) for module in model.modules())
    return ["batch-norm"] * norms + ["features"] * ("backbone" in moved) + ["embedding"] * ("embedding" in moved)
