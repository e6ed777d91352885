"""``embae export``."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from embae.trainer.commands.options import Debug
from embae.trainer.deployment.formats.registry import FORMATS, format_by_name
from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.runs.summary import RunSummary, read_summary
from embae.trainer.runtime.fast_imports import gc_paused

ABOUT = "embae.json"
"""The contract of a model in JSON, in the folder of its file; only a folder that has it is replaced."""


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or the export folder of a stage.")],
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write. Default: RUN/STAGE/FORMAT.")] = None,
    stage: Annotated[str | None, typer.Option(help=(
        "The stage of the run that has the model. Default: the last one that is scored."))] = None,
    debug: Debug = False,
) -> None:
    """Write a model in a format that other programs load.

    Its outputs are compared with PyTorch first. The folder also gets a model card.

    Example: embae export runs/embae-cam --format onnx --out model
    """
    export_format = format_by_name(form)
    name, source, summary = _choose_model(run, stage)
    to = out or source.parent / form
    _check_free(to)
    with gc_paused():
        from embae.datasets.files.atomic import atomic_folder, write_text
        from embae.datasets.files.json_files import write_json
        from embae.trainer.deployment.deployed_model import Deployed, contract
        from embae.trainer.deployment.formats.verify import write_verified
        from embae.trainer.deployment.model_card import model_card
        from embae.trainer.model.saved import SavedModel
    export_format.check_installed()
    opened = SavedModel.open(source)
    deployed = Deployed(opened)
    about: dict[str, Any] = {
        "name": f"{summary.recipe.name}-{name}" if summary else name, "embae": version("embae"), "format": form,
        "stage": name, "backbone": opened.model.backbone, **contract(opened, deployed)}
    about |= export_format.describe(about, opened, deployed)
    with atomic_folder(to) as partial:
        about["difference"] = write_verified(partial, export_format, opened, deployed, about)
        write_json(partial / ABOUT, about, ascii_only=False)
        write_text(partial / "README.md", model_card(about, export_format, summary))
    for batch, difference in about["difference"].items():
        print(f"batch {batch}: differs from PyTorch by {difference:.1e} of an embedding's length at most")
    print(f"{name} as {form}: {to}")


def _choose_model(run: Path, stage: str | None) -> tuple[str, Path, RunSummary | None]:
    """The name of the stage, its export, and its run.

    Raises:
        RecipeError: There is no run, or the run has no such model.
    """
    if os.path.isfile(run / "model.json"):  # not Path.is_file, which raises for a name that is too long
        if stage:
            raise RecipeError(f"--stage {stage}: {run} is the export of one stage; leave out --stage, or name the run")
        return run.resolve().parent.name, run, None
    summary = read_summary(run)
    recipe = summary.recipe
    models = [name for name in recipe.run if not recipe.stages[name].cluster]
    if stage and stage not in models:
        raise RecipeError(f"--stage {stage}: no stage of {run} that has a model; these have one: {', '.join(models)}")
    name = stage or next(iter(reversed(recipe.evaluate.values())), None) or models[-1]
    if summary.costs[name] is None:
        ready = [model for model in models if summary.costs[model]]
        raise RecipeError(f"{run}: stage {name} is not done; run embae train again to resume"
                          + (f", or choose --stage {' or '.join(ready)}" if ready else ""))
    return name, run / name / "export", summary


def _check_free(folder: Path) -> None:
    """Refuses to replace a folder that embae export has not written."""
    if not os.path.lexists(folder) or os.path.isfile(folder / ABOUT):
        return
    if not os.path.isdir(folder) or os.listdir(folder):
        raise WeightsError(f"{folder}: already exists and was not written by embae export; choose another folder "
                           "with --out")
