"""``embae extract``."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from embae.datasets.progress import note
from embae.datasets.records import SPLITS
from embae.datasets.remote import location
from embae.trainer.errors import RecipeError
from embae.trainer.importing import uncollected
from embae.trainer.options import Debug, check_writable, ranks_here
from embae.trainer.schema import TTA, Scoring
from embae.trainer.trained import Trained, find

Pattern = Annotated[str | None, typer.Option(metavar="REGEX", help=(
    "For a folder: what stands for pid and camid in the paths, as for embae shard folder; by default the first "
    "sub-folder is the camera."))]
Name = Annotated[str | None, typer.Option(help=(
    "Of the dataset that a folder of images becomes; by default the folder's own. A model knows its cameras by it."))]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")]
Stage = Annotated[str | None, typer.Option(help="Of a run: whose model; by default the last row of its table.")]


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
    trained = find(run, stage)
    if out.is_dir() or out.suffix != ".arrow":
        raise RecipeError(f"--out {out}: wanted a file named *.arrow")
    check_writable("--out", out)
    if "RANK" in os.environ or (ranks := ranks_here(nproc)) == 1:
        _work(trained, images, out, tta or tta_of(trained), name, pattern, skip_bad)
        return
    from embae.trainer.launch import launch
    if code := launch(["extract", *sys.argv[2:]], ranks):
        raise typer.Exit(code)


def tta_of(trained: Trained) -> TTA:
    """The test-time augmentation that a run is scored with."""
    return (trained.recipe.scoring if trained.recipe else Scoring()).tta


def _work(trained: Trained, images: str, out: Path, tta: TTA, name: str | None, pattern: str | None,
          skip_bad: bool) -> None:
    """One rank of it."""
    with uncollected():
        from embae.trainer.distributed import broadcast_object, join, leave, on_first_rank
        from embae.trainer.export import Export
        from embae.trainer.extract import extract_to, model_key, origin, reading_of
        from embae.trainer.footage import Pointed, pointed_at
        from embae.trainer.rescore import meanwhile
    export, world = Export.open(trained.export), join()
    try:
        with meanwhile(trained.run) if world.first else nullcontext() as place:
            folder = Path(broadcast_object(str(place)))

            def point() -> Pointed:
                return pointed_at(images, trained.root, name=name, pattern=pattern, keep=folder / "footage",
                                  skip_bad=skip_bad)

            mine = on_first_rank(world, point)  # a folder of images is sharded by one of them
            there = broadcast_object(str(mine.root) if mine else None)
            found, model = mine or Pointed.open(location(there)), export.restore().to(world.device)
            made = origin(model_key(model, export.spec, tta), found, SPLITS)
            new = extract_to(out, made, model, found, export.spec, tta, world, reading_of(trained))
    finally:
        leave()
    if world.first:
        if not new:
            note(f"{out}: is there already, of the same model and images")
        print(f"{out}: {len(found):,} embeddings of {model.z} numbers")
