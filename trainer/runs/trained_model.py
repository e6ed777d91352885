"""The model that a person means by a path: a run, one of its stages, or an export. Read without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from embae.datasets.remote.url import Url
from embae.trainer.errors import RecipeError
from embae.trainer.model.manifest import META
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.scoring import TTA, Scoring
from embae.trainer.runs.folder import recipe_of
from embae.trainer.runs.stage_folder import EXPORT, is_done


@dataclass(frozen=True)
class Trained:
    """Where a trained model is.

    Attributes:
        run: The folder that was named, beside which caches may lie.
        export: Its weights and ``model.json``.
        recipe: The run's, where a run was named.
    """

    run: Path
    export: Path
    recipe: Recipe | None

    @property
    def root(self) -> Path | Url | None:
        """Where the run's datasets lie, where a run was named."""
        return self.recipe.data.root if self.recipe else None


def open_path(path: Path) -> Path | Recipe:
    """The one model that a path names, or the recipe of a run, which has several.

    Args:
        path: A run folder, the folder of a stage, or an export.

    Raises:
        RecipeError: It is none of them.
    """
    for export in (path, path / EXPORT):
        if os.path.isfile(export / META):  # not Path.is_file, which a name too long makes raise
            return export
    if not os.path.isfile(path / "recipe.yaml"):
        raise RecipeError(f"{path}: neither a run folder (recipe.yaml) nor an export (model.json)")
    return recipe_of(path)


def find_model(path: Path, stage: str | None = None) -> Trained:
    """Finds the model below a path.

    Args:
        path: A run folder, the folder of a stage, or an export.
        stage: Of a run: whose model; by default that of the last row of its table.

    Raises:
        RecipeError: There is no model, the stage is not done, or `stage` was given for what is not a run.
    """
    recipe = open_path(path)
    if isinstance(recipe, Path):
        if stage:
            raise RecipeError(f"{path}: the stage {stage} was asked for, but this is one model; name its run")
        return Trained(path, recipe, None)
    wanted = stage or list(recipe.evaluate.values() or recipe.run)[-1]
    there = [name for name in recipe.run if is_done(path, name) and os.path.isfile(path / name / EXPORT / META)]
    if wanted not in there:
        known = f"; done: {', '.join(there)}" if there else ""
        what = "has no model to load" if wanted in recipe.run else "is not a stage of this run"
        raise RecipeError(f"{path}: {wanted} {what}{known}; go on with embae train, or name another stage")
    return Trained(path, path / wanted / EXPORT, recipe)


def tta_of(trained: Trained) -> TTA:
    """The test-time augmentation that a run is scored with."""
    return (trained.recipe.scoring if trained.recipe else Scoring()).tta
