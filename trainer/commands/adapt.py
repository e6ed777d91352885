"""``embae adapt``: a trained model, and unlabelled images of other cameras → a model for these.

What is run is the recipe ``adapt-source-free``, with what the model and the images ask for written out beside it:

    OUT/adapt.yaml      to read, and to change: embae train OUT/adapt.yaml --out ELSEWHERE
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
from embae.trainer.commands.options import ENOUGH, Debug, Name, Overrides, SkipBad, Stage, check_writable
from embae.trainer.commands.train import train
from embae.trainer.errors import RecipeError
from embae.trainer.model.manifest import read_manifest
from embae.trainer.runs.trained_model import TrainedModel, find_model
from embae.trainer.runtime.launch import count_gpus

RECIPE = "adapt.yaml"


def adapt(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run folder, the folder of a stage, or an export.")],
    target: Annotated[str, typer.Option(help=(
        "A sharded dataset, or a folder of images with a sub-folder for each camera."))],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The new run's folder; by default runs/adapt-NAME.")] = None,
    name: Name = None,
    pattern: Annotated[str | None, typer.Option(metavar="REGEX", help=(
        "For a folder: what stands for camid (and pid) in the paths, as for embae shard folder."))] = None,
    stage: Stage = None,
    skip_bad: SkipBad = False,
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks here; by default one a GPU, or one.")] = None,
    debug: Debug = False,
) -> None:
    """Adapt a trained model to cameras without labels, by the recipe adapt-source-free; labels are not looked at.

    Started again, it goes on where it stopped. The recipe is written out as adapt.yaml in the new run's folder.

    Example: embae adapt runs/strong-baseline --target footage/station --nproc 8
    """
    trained = find_model(run, stage)
    check_writable("--out", out or Path("runs"))
    keep = (out or Path("runs")) / "footage"
    index = footage(target, name=name, pattern=pattern, keep=keep, size=read_manifest(trained.export).image,
                    skip_bad=skip_bad)
    _look_at(index)
    to = out or Path("runs") / f"adapt-{index.name}"
    tree = _recipe(trained, index)
    _write(to / RECIPE, tree)
    train(ctx, str(to / RECIPE), overrides, out=to, nproc=nproc, debug=debug)


def _look_at(index: Index) -> None:
    """Says which cameras have few images.

    Raises:
        DataError: There is a single image.
    """
    camids, images = np.unique(index.camid[index.rows("train")], return_counts=True)
    if images.sum() < 2:
        raise DataError(f"{index.root}: has a single image to adapt to; wanted some hundreds of each camera")
    if few := [f"{index.camera_names.get(camid, camid)} ({count})"
               for camid, count in zip(camids.tolist(), images.tolist(), strict=True) if count < ENOUGH]:
        note(f"{index.name}: few images of {', '.join(few[:5])}{', …' * (len(few) > 5)}; below {ENOUGH} a camera gains "
             "little, and some hundreds are better")


def _recipe(trained: TrainedModel, index: Index) -> dict[str, Any]:
    """What differs from the shipped recipe."""
    found = read_manifest(trained.export)
    tree: dict[str, Any] = {
        "extends": "adapt-source-free", "name": f"adapt-{index.name}",
        "model": found.model.model_dump(mode="json"),
        "data": {"root": str(Path(index.root).parent.resolve()) if isinstance(index.root, Path) else _above(index),
                 "target": index.name, "image": list(found.image), "mean": list(found.mean), "std": list(found.std)},
        "stages": {"calibrate": {"init": str(trained.export.resolve())}},
    }
    if trained.recipe:
        tree["data"] |= {"loader": trained.recipe.data.loader}
    if not count_gpus():
        tree["defaults"] = {"precision": "fp32"}  # a CPU takes longer in bfloat16
    if "embedding" not in found.parts:
        for stage in ("calibrate", "group", "adapt", "recalibrate"):
            tree["stages"].setdefault(stage, {})["parts"] = {"embedding": "absent"}
        tree["stages"]["adapt"]["batch_norm"] = {"embedding": None}
    return tree


def _above(index: Index) -> str:
    return str(index.root).rpartition("/")[0]


def _what(path: Path, tree: dict[str, Any]) -> str:
    """What is another than a recipe says, as far as a person can know it."""
    try:
        before = parse_yaml(path.read_text(encoding="utf-8"))
        said = [what for what, keys in (("other images", ("data", "root")), ("another model", ("stages", "calibrate")))
                if before[keys[0]][keys[1]] != tree[keys[0]][keys[1]]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (it began with {' and '.join(said)})" if said else ""


def _write(path: Path, tree: dict[str, Any]) -> None:
    """Writes the recipe, unless it is there: then it must say the same."""
    text = format_yaml(tree)
    if os.path.isfile(path):
        if path.read_bytes() != text.encode():
            resolved = path.parent / "recipe.yaml"  # with what was set on the command line
            raise RecipeError(f"{path}: is there and says something else{_what(path, tree)}; give another folder with "
                              "--out, or go on with what it says: embae train "
                              f"{resolved if os.path.isfile(resolved) else path} --out {path.parent}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
