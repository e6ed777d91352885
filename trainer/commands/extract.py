"""``embae extract``."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.console.progress import note
from embae.datasets.index.records import SPLITS
from embae.datasets.remote.url import parse_location
from embae.trainer.commands.on_ranks import run_on_ranks
from embae.trainer.commands.options import Debug, Name, Pattern, SkipBad, Stage, check_writable
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.scoring import TTA
from embae.trainer.runs.trained_model import TrainedModel, find_model, tta_of
from embae.trainer.runtime.fast_imports import gc_paused


def extract(
    run: Annotated[Path, typer.Argument(help="A run folder, the folder of a stage, or an export.")],
    images: Annotated[str, typer.Argument(help=(
        "A sharded dataset or merged set, its name below data.root, or a folder of images."))],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, such as features.arrow.")],
    stage: Stage = None,
    tta: Annotated[TTA | None, typer.Option(help="Test-time augmentation; by default the recipe's.")] = None,
    name: Name = None,
    pattern: Pattern = None,
    skip_bad: SkipBad = False,
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks here; by default one a GPU, or one.")] = None,
    debug: Debug = False,
) -> None:
    """Write a model's embeddings of all images into one Arrow file; started again, it goes on.

    Example: embae extract runs/embae-cam shards/msmt17 -o msmt17.arrow --nproc 8
    """
    trained = find_model(run, stage)
    if out.is_dir() or out.suffix != ".arrow":
        raise RecipeError(f"--out {out}: wanted a file named *.arrow")
    check_writable("--out", out)
    run_on_ranks(
        ["extract", *sys.argv[2:]], nproc, needs_launch=False,
        work=lambda: _work(trained, images, out, tta or tta_of(trained), name, pattern, skip_bad))


def _work(trained: TrainedModel, images: str, out: Path, tta: TTA, name: str | None, pattern: str | None,
          skip_bad: bool) -> None:
    """One rank of it."""
    with gc_paused():
        from embae.datasets.image_source import ImageSource, open_source
        from embae.trainer.deployment.extract import extract_to, model_key, origin
        from embae.trainer.inference.options import Inference
        from embae.trainer.model.saved import SavedModel
        from embae.trainer.runs.scratch import scratch_folder
        from embae.trainer.runtime.distributed import broadcast_object, join, leave, on_first_rank
    export, world = SavedModel.open(trained.export), join()
    try:
        with scratch_folder(trained.run) if world.first else nullcontext() as place:
            folder = Path(broadcast_object(str(place)))

            def point() -> ImageSource:
                return open_source(images, trained.root, name=name, pattern=pattern, keep=folder / "footage",
                                  skip_bad=skip_bad)

            mine = on_first_rank(world, point)  # a folder of images is sharded by one of them
            there = broadcast_object(str(mine.root) if mine else None)
            found, model = mine or ImageSource.open(parse_location(there)), export.restore().to(world.device)
            made = origin(model_key(model, export.spec, tta), found, SPLITS)
            inference = Inference.of_export(export, trained.recipe, world, folder, tta=tta)
            new = extract_to(out, made, model, found, inference)
    finally:
        leave()
    if world.first:
        if not new:
            note(f"{out}: is there already, of the same model and images")
        print(f"{out}: {len(found):,} embeddings of {model.z} numbers")
