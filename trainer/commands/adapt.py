"""``embae adapt``: adapts a trained model to unlabelled images of other cameras.

It runs the recipe ``adapt-source-free``, extended by what the model and the images require:

    OUT/adapt.yaml      the extended recipe; edit it and run embae train OUT/adapt.yaml --out ELSEWHERE
    footage/            in OUT, or in runs/: the images of a folder, sharded at the size that the model takes
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.files.atomic import write_text
from embae.datasets.files.yaml_files import format_yaml, parse_yaml
from embae.datasets.image_source import footage
from embae.datasets.index.arrow_index import Index
from embae.trainer.commands.options import (
    ENOUGH,
    Debug,
    ModelPath,
    Name,
    Nproc,
    Overrides,
    SkipBad,
    Stage,
    check_writable,
)
from embae.trainer.commands.train import train
from embae.trainer.errors import RecipeError
from embae.trainer.model.manifest import read_manifest
from embae.trainer.runs.trained_model import TrainedModel, find_model
from embae.trainer.runtime.launch import count_gpus

RECIPE = "adapt.yaml"


def adapt(
    ctx: typer.Context,
    run: ModelPath,
    target: Annotated[str, typer.Option(help=(
        "A sharded dataset, or a folder of images with a sub-folder for each camera."))],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run. Default: runs/adapt-NAME.")] = None,
    name: Name = None,
    pattern: Annotated[str | None, typer.Option(metavar="REGEX", help=(
        "For a folder of images: matches its paths, with the group camid, as for embae shard folder."))] = None,
    stage: Stage = None,
    skip_bad: SkipBad = False,
    nproc: Nproc = None,
    debug: Debug = False,
) -> None:
    """Adapt a trained model to new cameras without labels.

    It runs the recipe adapt-source-free, which ignores labels, and writes it as adapt.yaml to the new run's folder. If
    the run is stopped, run the same command again to resume.

    Example: embae adapt runs/strong-baseline --target footage/station --nproc 8
    """
    trained = find_model(run, stage)
    check_writable("--out", out or Path("runs"))
    keep = (out or Path("runs")) / "footage"
    index = footage(target, name=name, pattern=pattern, keep=keep, size=read_manifest(trained.export).image,
                    skip_bad=skip_bad)
    _check_images(index)
    to = out or Path("runs") / f"adapt-{index.name}"
    tree = _recipe(trained, index)
    _write(to / RECIPE, tree)
    train(ctx, str(to / RECIPE), overrides, out=to, nproc=nproc, debug=debug)


def _check_images(index: Index) -> None:
    """Notes cameras that have few images.

    Raises:
        DataError: There is only one image.
    """
    camids, images = np.unique(index.camid[index.rows("train")], return_counts=True)
    if images.sum() < 2:
        raise DataError(f"{index.root}: has a single image to adapt to; expected some hundreds of each camera")
    if few := [f"{index.camera_names.get(camid, camid)} ({count})"
               for camid, count in zip(camids.tolist(), images.tolist(), strict=True) if count < ENOUGH]:
        note(f"{index.name}: few images of {', '.join(few[:5])}{', …' * (len(few) > 5)}; with fewer than {ENOUGH} a "
             "camera gains little, and some hundreds are better")


def _recipe(trained: TrainedModel, index: Index) -> dict[str, Any]:
    """The keys that differ from the shipped recipe."""
    manifest = read_manifest(trained.export)
    tree: dict[str, Any] = {
        "extends": "adapt-source-free", "name": f"adapt-{index.name}",
        "model": manifest.model.model_dump(mode="json"),
        "data": {"root": str(Path(index.root).parent.resolve()) if isinstance(index.root, Path) else _above(index),
                 "target": index.name,
                 **{key: list(getattr(manifest, key)) for key in ("image", "mean", "std")}},
        "stages": {"calibrate": {"init": str(trained.export.resolve())}},
    }
    if trained.recipe:
        tree["data"] |= {"loader": trained.recipe.data.loader}
    if not count_gpus():
        tree["defaults"] = {"precision": "fp32"}  # bfloat16 is slower on a CPU
    if "embedding" not in manifest.parts:
        for stage in ("calibrate", "group", "adapt", "recalibrate"):
            tree["stages"].setdefault(stage, {})["parts"] = {"embedding": "absent"}
        tree["stages"]["adapt"]["batch_norm"] = {"embedding": None}
    return tree


def _above(index: Index) -> str:
    return str(index.root).rpartition("/")[0]


def _origin_note(path: Path, tree: dict[str, Any]) -> str:
    """Whether the run in a folder began with other images or another model, in parentheses."""
    try:
        before = parse_yaml(path.read_text(encoding="utf-8"))
        origins = (("other images", "data", "root"), ("another model", "stages", "calibrate"))
        different = [origin for origin, part, key in origins if before[part][key] != tree[part][key]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (it began with {' and '.join(different)})" if different else ""


def _write(path: Path, tree: dict[str, Any]) -> None:
    """Writes the recipe, or checks that a recipe in its place is the same."""
    text = format_yaml(tree)
    if os.path.isfile(path):
        if path.read_bytes() != text.encode():
            resolved = path.parent / "recipe.yaml"  # includes keys set on the command line
            raise RecipeError(f"{path}: already exists and differs{_origin_note(path, tree)}; choose another folder "
                              "with --out, or resume the run in this one: embae train "
                              f"{resolved if os.path.isfile(resolved) else path} --out {path.parent}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
