"""The trained model that a path names: a run, one of its stages, or an export. Read without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from embae.datasets.remote.url import Url
from embae.trainer.errors import RecipeError
from embae.trainer.model.manifest import META
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.scoring import TTA, Scoring
from embae.trainer.runs.folder import read_recipe
from embae.trainer.runs.stage_folder import EXPORT, is_done


@dataclass(frozen=True)
class TrainedModel:
    """Where a trained model is.

    Attributes:
        run: The folder that was named; caches are stored in it.
        export: Its weights and ``model.json``.
        recipe: The run's recipe, if a run was named.
    """

    run: Path
    export: Path
    recipe: Recipe | None

    @property
    def root(self) -> Path | Url | None:
        """The folder of the run's datasets, if a run was named."""
        return self.recipe.data.root if self.recipe else None


def resolve_path(path: Path) -> Path | Recipe:
    """Finds the export that a path names, or reads the recipe of a run, which has several.

    Args:
        path: A run folder, the folder of a stage, or an export.

    Raises:
        RecipeError: The path is none of them.
    """
    for export in (path, path / EXPORT):
        if os.path.isfile(export / META):  # not Path.is_file, which raises for a name that is too long
            return export
    if not os.path.isfile(path / "recipe.yaml"):
        raise RecipeError(f"{path}: neither a run folder (recipe.yaml) nor an export (model.json)")
    return read_recipe(path)


def find_model(path: Path, stage: str | None = None) -> TrainedModel:
    """Finds the model that a path names.

    Args:
        path: A run folder, the folder of a stage, or an export.
        stage: A stage of the run; by default the stage of the last row of its score table.

    Raises:
        RecipeError: There is no model, the stage is not done, or `stage` was given although `path` is not a run.
    """
    recipe = resolve_path(path)
    if isinstance(recipe, Path):
        if stage:
            raise RecipeError(f"{path}: contains one model, so no stage {stage} can be chosen; name its run instead")
        return TrainedModel(path, recipe, None)
    chosen = stage or list(recipe.evaluate.values() or recipe.run)[-1]
    finished = [name for name in recipe.run if is_done(path, name) and os.path.isfile(path / name / EXPORT / META)]
    if chosen not in finished:
        problem = "has no model to load" if chosen in recipe.run else "is not a stage of this run"
        done = f"; done: {', '.join(finished)}" if finished else ""
        raise RecipeError(f"{path}: {chosen} {problem}{done}; resume the run with embae train, or name another stage")
    return TrainedModel(path, path / chosen / EXPORT, recipe)


def tta_of(trained: TrainedModel) -> TTA:
    """The test-time augmentation that a run is scored with."""
    return (trained.recipe.scoring if trained.recipe else Scoring()).tta
