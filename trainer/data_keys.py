"""What a stage reads: `Stage.data` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embae.trainer.keys import Count, Flag, Fraction, Name, Positive, Strict, Whole, checked


class AugmentKeys(Strict):
    """See `embae.datasets.Augment`."""

    flip: Flag = False
    crop: Flag = False
    pad: Whole = 0
    erase: Fraction = 0.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=180, strict=True)] = 0.0


class StageData(Strict):
    """What a stage reads: P × K for labelled stages, a plain global batch for the others."""

    from_: Literal["sources", "target", "all"] = Field(alias="from")
    labels: Name | None = None
    """The clustering stage whose pseudo-labels the target's images bear."""
    P: Count | dict[Name, Count] | None = None
    K: Count | None = None
    batch: Count | None = None
    weights: dict[Name, Positive] | None = None
    mix: Flag = False
    window: Count | None = None
    """Shards of a dataset that identities are drawn from at a time, for data that is far away; null: all of them.
    Of a target with pseudo-labels always all."""
    augment: AugmentKeys = AugmentKeys()

    @property
    def labelled(self) -> bool:
        """Whether batches are made of identities."""
        return self.batch is None

    @model_validator(mode="after")
    def _shape(self) -> StageData:
        wrong = []
        if self.labels and (self.from_ == "sources" or self.batch is not None):
            wrong.append("labels: pseudo-labels are the target's; they go with from: target or all, P and K")
        if (self.batch is None) == (self.P is None and self.K is None):
            wrong.append("batch: give either P and K (labelled images) or batch (any images)")
        elif self.batch is None and (self.P is None or self.K is None):
            wrong.append(f"{'P' if self.P is None else 'K'}: missing; a labelled stage needs both P and K")
        for key in ("weights", "mix", "window"):
            if self.batch is not None and getattr(self, key):
                wrong.append(f"{key}: belongs to labelled stages; plain batches are shuffled over all images")
        if self.labels and self.window and (self.from_ == "target" or self.mix):
            wrong.append("window: the images of a pseudo-label lie in any shards; leave it out")
        if self.mix and self.weights:
            wrong.append("weights: datasets do not take turns where mix is true; give one of them")
        if self.mix and isinstance(self.P, dict):
            wrong.append("P: give one number; with mix: true a batch is of all datasets")
        return checked(self, wrong)
