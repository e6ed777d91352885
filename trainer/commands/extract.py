"""``embae extract``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.console.progress import note
from embae.datasets.image_source import ImageSource, open_source
from embae.datasets.index.records import SPLITS
from embae.datasets.remote.url import parse_location
from embae.trainer.commands.on_ranks import run_on_ranks
from embae.trainer.commands.options import Debug, ModelPath, Name, Nproc, Pattern, SkipBad, Stage, Tta, check_writable
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.scoring import TTA
from embae.trainer.runs.trained_model import TrainedModel, find_model, tta_of
from embae.trainer.runtime.fast_imports import gc_paused


def extract(
    run: ModelPath,
    images: Annotated[str, typer.Argument(help=(
        "A sharded dataset or merged set, its name below data.root, or a folder of images."))],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, such as features.arrow.")],
    stage: Stage = None,
    tta: Tta = None,
    name: Name = None,
    pattern: Pattern = None,
    skip_bad: SkipBad = False,
    nproc: Nproc = None,
    debug: Debug = False,
) -> None:
    """Write a model's embeddings of images to one Arrow file.

    If the command is stopped, run it again to resume.

    Example: embae extract runs/embae-cam shards/msmt17 -o msmt17.arrow --nproc 8
    """
    trained = find_model(run, stage)
    if out.is_dir() or out.suffix != ".arrow":
        raise RecipeError(f"--out {out}: expected a file named *.arrow")
    check_writable("--out", out)
    open_images = partial(open_source, images, trained.root, name=name, pattern=pattern, skip_bad=skip_bad)
    run_on_ranks(
        ["extract", *sys.argv[2:]], nproc, needs_launch=False,
        work=lambda: _extract(trained, open_images, out, tta or tta_of(trained)))


def _extract(trained: TrainedModel, open_images: Callable[..., ImageSource], out: Path, tta: TTA) -> None:
    """The work of one rank.

    Args:
        trained: The model.
        open_images: Opens the images, given the folder that shards of a folder of images are written to.
        out: The file of embeddings.
        tta: Test-time augmentation.
    """
    with gc_paused():
        from embae.trainer.deployment.extract import extract_to, model_key, origin
        from embae.trainer.inference.options import Inference
        from embae.trainer.model.saved import SavedModel
        from embae.trainer.runs.scratch import scratch_folder
        from embae.trainer.runtime.distributed import broadcast_object, join, leave, on_first_rank
    export, world = SavedModel.open(trained.export), join()
    try:
        with scratch_folder(trained.run) if world.first else nullcontext() as scratch:
            folder = Path(broadcast_object(str(scratch)))
            # A folder of images is sharded by the first rank.
            opened = on_first_rank(world, lambda: open_images(keep=folder / "footage"))
            root = broadcast_object(str(opened.root) if opened else None)
            source, model = opened or ImageSource.open(parse_location(root)), export.restore().to(world.device)
            contents = origin(model_key(model, export.spec, tta), source, SPLITS)
            inference = Inference.of_export(export, trained.recipe, world, folder, tta=tta)
            is_new = extract_to(out, contents, model, source, inference)
    finally:
        leave()
    if world.first:
        if not is_new:
            note(f"{out}: already contains the embeddings of this model and these images")
        print(f"{out}: {len(source):,} embeddings of {model.z} numbers")
