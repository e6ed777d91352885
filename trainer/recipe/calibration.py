"""The keys of a stage that calibrates a model: `Stage.calibrate` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from embae.datasets.fields import Strict, checked


class Calibrate(Strict):
    """Statistics of the target's images become part of the model; nothing is trained."""

    what: Literal["batch-norm", "features", "embedding"]
    """Batch norms of the whole network; mean and deviation of the features; mean of the embeddings."""
    per: Literal["dataset", "camera"] = "camera"

    @model_validator(mode="after")
    def _camera(self) -> Calibrate:
        wrong = self.per == "dataset" and self.what != "batch-norm"
        return checked(self, [f"per: {self.what} is calibrated by camera; use camera, as only batch-norm can use "
                              "dataset"] * wrong)
