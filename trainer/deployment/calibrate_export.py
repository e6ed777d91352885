"""Calibrates an export on new cameras, for `embae calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embae.datasets.console.progress import note
from embae.datasets.files.atomic import atomic_folder
from embae.datasets.sampling.view import View
from embae.trainer.errors import WeightsError
from embae.trainer.model.known_cameras import describe_cameras
from embae.trainer.recipe.schema import Recipe

if TYPE_CHECKING:
    from embae.trainer.model.embae import EmbAE
    from embae.trainer.model.saved import SavedModel


BATCH = 128
"""Images at a time, as in the recipes: the variance of a batch norm is the mean of the variances of its batches."""


def calibrate_export(export: SavedModel, view: View, recipe: Recipe | None, target: Path, features: bool) -> None:
    """Writes a copy of a model with the statistics of a view's images, computed as calibrating stages do.

    Args:
        export: The model.
        view: The images of the cameras.
        recipe: The recipe of the model's run, for its loader, if there is one.
        target: The folder to write.
        features: Leave the embedding out and standardise the features.

    Raises:
        WeightsError: Some of the model's cameras would not be calibrated in the way that the new ones are.
    """
    from embae.trainer.inference.calibration import calibrate
    from embae.trainer.inference.options import Inference, Reading
    from embae.trainer.model import saved
    from embae.trainer.recipe.calibration import Calibrate
    from embae.trainer.runtime.distributed import join, leave
    model = export.restore(["backbone"] if features else None)
    steps = _steps(model, view, features)
    world = join()
    try:
        model.to(world.device).eval()
        inference = Inference(export.spec, world, target.parent, Reading.of_recipe(recipe, BATCH))
        for step in steps:
            note(f"calibrating {step} on {len(view):,} images of {len(view.cameras())} cameras")
            calibrate(model, Calibrate.model_validate({"what": step}), view, inference)
        with atomic_folder(target) as folder:
            state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
            saved.write(folder, model, state, keys=export.model, spec=export.spec)
    finally:
        leave()


def _steps(model: EmbAE, view: View, features: bool) -> list[str]:
    """What to calibrate, in this order: the same as for the other cameras of the model, if it has other cameras.

    Raises:
        WeightsError: The features would be standardised for the view's cameras alone.
    """
    from embae.trainer.model.camera_tables import MEAN, SHIFT, has_table
    parts = model.parts()
    moved = [part for part in ("backbone", "embedding") if part in parts and has_table(parts[part], SHIFT)]
    view_cameras = set(model.known_cameras.indices(view, np.arange(len(view))).tolist())
    others = [camera for index, camera in enumerate(model.cameras) if index not in view_cameras]
    if not others:
        return ["batch-norm"] + ["features"] * ("embedding" not in parts)
    if features and "backbone" not in moved:
        raise WeightsError("--features: the model is calibrated on other cameras "
                           f"({describe_cameras(others, model.known_cameras.names)}) whose features are not "
                           "standardised; start from the stage that it was calibrated from, and give the images of all "
                           "cameras")
    norms = any(has_table(module, MEAN) for module in model.modules())
    return ["batch-norm"] * norms + ["features"] * ("backbone" in moved) + ["embedding"] * ("embedding" in moved)
