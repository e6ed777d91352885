"""Calibrates an export on new cameras."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embae.datasets.console.progress import note
from embae.datasets.files.atomic import atomic_folder
from embae.datasets.sampling.view import View
from embae.trainer.errors import WeightsError
from embae.trainer.model.known_cameras import tell
from embae.trainer.recipe.schema import Recipe

if TYPE_CHECKING:
    from embae.trainer.model.embae import EmbAE
    from embae.trainer.model.saved import SavedModel


BATCH = 128
"""Images at a time, as in the recipes: the variance of a batch norm is the mean of its batches'."""


def calibrate_export(export: SavedModel, view: View, recipe: Recipe | None, to: Path, features: bool) -> None:
    """Puts the statistics of images into a copy of a model: by the code of a recipe's stages, in their order."""
    from embae.trainer.inference.calibration import calibrate
    from embae.trainer.inference.options import Inference, Reading
    from embae.trainer.model import saved as exports
    from embae.trainer.recipe.calibration import Calibrate
    from embae.trainer.runtime.distributed import join, leave
    model = export.restore(["backbone"] if features else None)
    steps = _steps(model, view, features)
    world = join()
    try:
        model.to(world.device).eval()
        inference = Inference(export.spec, world, to.parent, Reading.of_recipe(recipe, BATCH))
        for what in steps:
            note(f"calibrating {what} on {len(view):,} images of {len(view.cameras())} cameras")
            calibrate(model, Calibrate.model_validate({"what": what}), view, inference)
        with atomic_folder(to) as folder:
            state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
            exports.write(folder, model, state, keys=export.model, spec=export.spec)
    finally:
        leave()


def _steps(model: EmbAE, view: View, features: bool) -> list[str]:
    """What to calibrate, in this order: what the other cameras have that the model is calibrated on, if there are any.

    Raises:
        ExportError: What is asked for would leave the others behind.
    """
    from embae.trainer.model.camera_tables import MEAN, SHIFT, has_table
    parts = model.parts()
    moved = [part for part in ("backbone", "embedding") if part in parts and has_table(parts[part], SHIFT)]
    own = set(model.known.numbers(view, np.arange(len(view))).tolist())
    others = [camera for number, camera in enumerate(model.cameras) if number not in own]
    if not others:
        return ["batch-norm"] + ["features"] * ("embedding" not in parts)
    if features and "backbone" not in moved:
        raise WeightsError("--features: the model is calibrated on other cameras "
                          f"({tell(others, model.known.names)}) whose features are not standardised; start from the "
                          "stage that it was calibrated from, and give the images of all cameras")
    norms = any(has_table(module, MEAN) for module in model.modules())
    return ["batch-norm"] * norms + ["features"] * ("backbone" in moved) + ["embedding"] * ("embedding" in moved)
