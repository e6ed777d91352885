"""``embae calibrate``: adds the statistics of new cameras to a model."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from embae.datasets.errors import DataError
from embae.datasets.image_source import images, open_source, shard
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import Record
from embae.datasets.inspection.verification import check_rows
from embae.datasets.sampling.view import View
from embae.trainer.commands.options import ENOUGH, Debug, ModelPath, Name, Pattern, SkipBad, check_writable
from embae.trainer.deployment.calibrate_export import calibrate_export
from embae.trainer.errors import RecipeError
from embae.trainer.model.known_cameras import Camera, KnownCameras
from embae.trainer.runs.stage_folder import EXPORT
from embae.trainer.runs.trained_model import find_model
from embae.trainer.runtime.fast_imports import gc_paused

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,99})(?:/(.+))?")
Label = tuple[str, str]
"""A dataset, and a camera of it by name or number, as the user writes them."""


def calibrate(
    run: ModelPath,
    camera: Annotated[list[str] | None, typer.Option("--camera", metavar="NAME=IMAGES", show_default=False, help=(
        "A camera and a folder (or quoted pattern) of its images. NAME is a dataset with a camera name or number, such "
        "as station/door or station/3; a dataset alone means its camera 0. Repeatable."))] = None,
    dataset: Annotated[str | None, typer.Option(help=(
        "All cameras of a dataset: a name below data.root, a folder or URL of shards, a merged set, or a folder of "
        "images with a sub-folder for each camera."))] = None,
    out: Annotated[Path | None, typer.Option(help="The export to write. Default: RUN/calibrated/export.")] = None,
    stage: Annotated[str | None, typer.Option(help=(
        "The stage of the run that has the model. Default: the last one that is scored."))] = None,
    features: Annotated[bool, typer.Option("--features", help=(
        "Leave out the embedding and search by standardised features."))] = False,
    name: Name = None,
    pattern: Pattern = None,
    skip_bad: SkipBad = False,
    debug: Debug = False,
) -> None:
    """Calibrate a model on unlabelled images of new cameras.

    Nothing is trained, and labels are ignored. The batch norms get the statistics of each new camera. If the model has
    no embedding, its features get mean 0 and deviation 1 for each camera. Statistics of other cameras stay. A camera
    needs 32 images, better some hundreds; the fewer it has, the nearer its statistics stay to those that all cameras
    share.

    Example: embae calibrate runs/baseline --camera station/door=footage/door --camera station/hall=footage/hall
    """
    locations = _parse_cameras(camera or [])
    if not locations and dataset is None:
        raise RecipeError("which cameras? Give --camera NAME=IMAGES for each, or --dataset for all of a dataset")
    if dataset is None and (name or pattern):
        raise RecipeError(f"--{'name' if name else 'pattern'}: is only for --dataset; --camera names the dataset and "
                          "camera of its images itself")
    trained = find_model(run, stage)
    recipe, source = trained.recipe, trained.export
    to = out or (run if recipe else source.resolve().parent) / "calibrated" / EXPORT
    if os.path.lexists(to):
        raise RecipeError(f"{to}: already exists; calibrate writes a new folder: choose another with --out, or remove "
                          "this one first")
    check_writable("--out", to)
    records = {label: images(location)[1] for label, location in locations.items()}
    for label, of_camera in records.items():
        _refuse_few("/".join(label), len(of_camera))
    with gc_paused():
        from embae.trainer.model.saved import SavedModel
    export = SavedModel.open(source)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the temporary folder is removed
    with tempfile.TemporaryDirectory(prefix="embae-") as folder:
        indexes = _shard_cameras(records, export.known_cameras, Path(folder), skip_bad)
        if dataset is not None:
            images_source = open_source(dataset, trained.root, name=name, pattern=pattern, keep=Path(folder),
                                        skip_bad=skip_bad)
            for index in images_source.indexes:
                check_rows(index)
            _refuse_mixed(images_source.indexes, list(records))
            indexes += images_source.indexes
        view = View(indexes, "train")
        counts = _count_images(view)
        calibrate_export(export, view, recipe, to, features)
    for text, count in sorted(counts.items()):
        few = "" if count >= ENOUGH else f", which is few: below {ENOUGH} a search gains less; some hundreds are better"
        print(f"{text}: {count:,} images{few}")
    print(f"calibrated {source}: {to}")


def _parse_cameras(options: Sequence[str]) -> dict[Label, str]:
    """Camera → location of its images, from the values of ``--camera``."""
    locations: dict[Label, str] = {}
    for text in options:
        name, _, location = text.partition("=")
        parts = _NAME.fullmatch(name)
        if not parts or not location:
            raise DataError(f"--camera {text}: expected NAME=IMAGES, such as station/door=footage/door for the camera "
                            "door of station, or door=footage/door for camera 0 of door; names of datasets have "
                            "letters, digits, _ and -")
        label = parts[1], parts[2] or "0"
        if label in locations:
            raise DataError(f"--camera {text}: {'/'.join(label)} is given twice, the first time as {locations[label]}; "
                            "a pattern in quotes takes images of several folders")
        locations[label] = location
    return locations


def _shard_cameras(records: Mapping[Label, list[Record]], known_cameras: KnownCameras, keep: Path,
                   skip_bad: bool) -> list[Index]:
    """Shards the images of cameras as datasets, one for each dataset name."""
    cameras = _number_cameras(list(records), known_cameras)
    indexes = []
    for dataset in sorted({dataset for dataset, _ in records}):
        numbered = []
        for label, of_camera in records.items():
            if label[0] == dataset:
                (_, camid), name = cameras[label]
                numbered += [replace(record, key=f"{camid}-{number}", camid=camid, camera=name)
                             for number, record in enumerate(of_camera)]
        indexes.append(shard(dataset, numbered, keep, source={"reader": "folder"}, skip_bad=skip_bad))
    return indexes


def _number_cameras(labels: Sequence[Label], known_cameras: KnownCameras) -> dict[Label, tuple[Camera, str | None]]:
    """Camera of each label, and its name if it has one: as the model knows it, or with a new number."""
    cameras: dict[Label, tuple[Camera, str | None]] = {}
    numbered = list(known_cameras.cameras)
    for dataset, label in sorted(labels, key=lambda label: not _is_number(label[1])):  # numbers first: names get others
        index = known_cameras.by_label(dataset, label)
        if index >= 0:
            camera = known_cameras.cameras[index]
            name = known_cameras.names.get(camera)
        elif _is_number(label):
            camera, name = (dataset, int(label)), None
        else:
            camera = dataset, max((camid for other, camid in numbered if other == dataset), default=-1) + 1
            name = label
        if twice := [other for (_, other), (earlier, _) in cameras.items() if earlier == camera]:
            raise DataError(f"--camera {dataset}/{label}: is given twice, the first time as {dataset}/{twice[0]}; "
                            "a pattern in quotes takes images of several folders")
        cameras[dataset, label] = camera, name
        numbered.append(camera)
    return cameras


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", text) is not None


def _refuse_mixed(indexes: Sequence[Index], labels: Sequence[Label]) -> None:
    """Refuses a dataset of which ``--camera`` names single cameras too: these would be numbered separately."""
    for index in indexes:
        if single := [f"{dataset}/{camera}" for dataset, camera in labels if dataset == index.name]:
            raise DataError(f"{index.root}: --camera gives cameras of {index.name} too ({', '.join(single)}); put "
                            "their images into its folder, or give its cameras one by one")


def _count_images(view: View) -> dict[str, int]:
    """Number of images of each camera."""
    rows = np.arange(len(view))
    per_camera = Counter(zip(view.locate(rows)[0].tolist(), view.column("camid", rows).tolist(), strict=True))
    counts = {}
    for (number, camid), count in per_camera.items():
        camera = view.names[number], camid
        label = f"{camera[0]}/{view.camera_names.get(camera, camid)}"
        _refuse_few(label, count)
        counts[label] = count
    return counts


def _refuse_few(label: str, count: int) -> None:
    if count < 2:
        raise DataError(f"{label}: has a single image, which does not show how its images vary; expected at least 2, "
                        f"better {ENOUGH}")
