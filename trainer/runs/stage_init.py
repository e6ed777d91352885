"""Checks of what stages start from: the weights exist, and their nuisance heads serve the stage's images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from embae.trainer.errors import WeightsError
from embae.trainer.model.manifest import META, WEIGHTS, check_weights, named, read_manifest
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.stage_folder import EXPORT, is_done

_SHOWN = 5  # missing heads listed in one message


def check_inits(recipe: Recipe, run: Path | None = None) -> None:
    """Checks that the weights which stages start from exist and are whole, without reading all of them.

    Args:
        recipe: Checked.
        run: The run folder. A stage that is done there is not checked: what it started from may have been removed.

    Raises:
        WeightsError: Names the key.
    """
    for name in recipe.run:
        init = recipe.stages[name].init
        if init in ("hub", "random", *recipe.run) or (run and is_done(run, name)):
            continue
        with named(f"stages.{name}.init"):
            _check_weights(init, stages=recipe.run)


def _check_weights(init: str, stages: Sequence[str]) -> None:
    path = Path(init)
    if os.path.isfile(path):  # not Path.is_file, which raises for a name that is too long
        if path.suffix == ".safetensors":
            check_weights(path)
        return
    expected = ("expected hub, random, a weights file (.safetensors, .pth), the folder <run>/<stage> of another run, "
                f"or an earlier stage ({', '.join(stages)})")
    if not os.path.isdir(path):
        raise WeightsError(f"{init} does not exist; {expected}")
    exports = [folder for folder in (path, path / EXPORT) if (folder / META).is_file()]
    if not exports:
        raise WeightsError(f"the folder {init} contains no export; {expected}")
    read_manifest(exports[0])
    check_weights(exports[0] / WEIGHTS)


class NuisanceHeads:
    """Follows which nuisance heads the model has at each stage of a recipe, from the first stage to the last."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self._heads: dict[str, set[tuple[str, int]]] = {}  # stage → dataset and camera, 0 where heads are by dataset

    def missing(self, name: str, cameras: Sequence[tuple[str, int]]) -> list[str]:
        """A mistake if the model that a stage starts from has no head for some of its images.

        Args:
            name: The stage; earlier ones have been passed before.
            cameras: Dataset and camera of its images.
        """
        stage, per = self._recipe.stages[name], self._recipe.model.nuisance.per
        if stage.use("nuisance") == "absent" or per == "shared":
            return []
        needed = {(dataset, camid if per == "camera" else 0) for dataset, camid in cameras}
        inherited = self._heads.get(stage.init) if "nuisance" not in stage.reinit else None
        self._heads[name] = needed if inherited is None else inherited
        if not stage.loss:
            return []  # a stage without training passes the heads on and uses none
        missing = sorted(needed - self._heads[name])
        self._heads[name] = self._heads[name] | needed  # reported once, not again for the stages that follow
        if not missing:
            return []
        names = [f"camera {camid} of {dataset}" if per == "camera" else dataset for dataset, camid in missing]
        listed = ", ".join(names[:_SHOWN]) + ", …" * (len(names) > _SHOWN)
        return [f"stages.{name}.init: {stage.init} has no nuisance head for {listed}; let the stage start with new "
                "heads by reinit: [nuisance]"]
