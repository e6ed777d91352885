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
from embae.datasets.image_source import images, open_source, shard
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import Record
from embae.datasets.inspection.verification import check_rows
from embae.datasets.sampling.view import View
from embae.trainer.commands.options import ENOUGH, Debug, Name, Pattern, SkipBad, check_writable
from embae.trainer.deployment.calibrate_export import calibrate_export
from embae.trainer.errors import RecipeError
from embae.trainer.model.known_cameras import Camera, KnownCameras
from embae.trainer.runs.stage_folder import EXPORT
from embae.trainer.runs.trained_model import find_model
from embae.trainer.runtime.fast_imports import gc_paused

if TYPE_CHECKING:
    pass


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
    trained = find_model(run, stage)
    recipe, source = trained.recipe, trained.export
    to = out or (run if recipe else source.resolve().parent) / "calibrated" / EXPORT
    if os.path.lexists(to):
        raise RecipeError(f"{to}: is there already; calibrate writes a new folder: give another with --out, or remove "
                          "it first")
    check_writable("--out", to)
    found = {one: images(where)[1] for one, where in wanted.items()}
    for one, records in found.items():
        _refuse_few("/".join(one), len(records))
    with gc_paused():
        from embae.trainer.model.saved import SavedModel
    export = SavedModel.open(source)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what lies elsewhere meanwhile is removed
    with tempfile.TemporaryDirectory(prefix="embae-") as folder:
        indexes = _shard(found, export.known_cameras, Path(folder), skip_bad)
        if dataset is not None:
            pointed = open_source(dataset, trained.root, name=name, pattern=pattern, keep=Path(folder),
                                 skip_bad=skip_bad)
            for index in pointed.indexes:
                check_rows(index)
            indexes += _apart(pointed.indexes, found)
        view = View(indexes, "train")
        counts = _counts(view)
        calibrate_export(export, view, recipe, to, features)
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


def _shard(found: dict[Said, list[Record]], known: KnownCameras, keep: Path, skip_bad: bool) -> list[Index]:
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


def _numbered(given: Sequence[Said], known: KnownCameras) -> dict[Said, tuple[Camera, str | None]]:
    """Camera, and its name if it has one, of each that was given: as the model knows it, or a new one."""
    found: dict[Said, tuple[Camera, str | None]] = {}
    taken = list(known.cameras)
    for dataset, said in sorted(given, key=lambda one: not _is_number(one[1])):  # numbers first: names get others
        place = known.by_label(dataset, said)
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
