"""The terms of a stage's loss: `Stage.loss` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from embae.datasets.fields import Count, Flag, Length, Positive, Share, Strict, checked


class Triplet(Strict):
    """Triplet loss over the global batch; a numeric margin gives the hinge, ``soft`` log(1 + exp(d_ap − d_an))."""

    mining: Literal["batch-hard", "batch-all"] = "batch-hard"
    margin: Literal["soft"] | Positive = "soft"
    batch_all_epochs: Length = 0.0
    """How long batch-all mines first: from random weights batch-hard collapses."""
    weight: Positive = 1.0


class Reconstruction(Strict):
    """Mean squared error between the decoder's output and the backbone's features."""

    standardised: Flag = False
    """Features less their mean, divided by their deviation over the stage's images: each then counts alike."""
    weight: Positive = 1.0


class Identity(Strict):
    """Cross-entropy of the classifier over the identities of the stage's images."""

    smoothing: Share = 0.0
    weight: Positive = 1.0


class Memory(Strict):
    """Cross-entropy of the cosines to a memory, which holds a unit vector for each identity; see `memory.py`."""

    temperature: Positive = 0.05
    """What cosines are divided by."""
    momentum: Share = 0.1
    """The part of an entry that stays where a batch has images of it: at 0 these replace it, near 1 it hardly moves."""
    update: Literal["mean", "hard"] = "mean"
    """What an entry moves towards: the mean of its images in the batch, or the one least like it."""
    weight: Positive = 1.0


class Proxies(Memory):
    """As `Memory`, with a unit vector for each camera that an identity is seen by (Wang et al. 2021)."""

    hard_negatives: Count = 50
    """Vectors of others that those of the same identity on other cameras are told from."""


class Adversarial(Strict):
    """The code [z, v] is made to look like noise to a discriminator; the stage's terms then update in turn."""

    weight: Positive = 1.0


class Loss(Strict):
    """The terms of a stage's loss."""

    triplet: Triplet | None = None
    identity: Identity | None = None
    memory: Memory | None = None
    proxies: Proxies | None = None
    reconstruction: Reconstruction | None = None
    adversarial: Adversarial | None = None

    def terms(self) -> list[str]:
        """Names of the terms that are there."""
        return [name for name, term in self if term]

    @model_validator(mode="after")
    def _some(self) -> Loss:
        return checked(self, [] if self.terms() else [f"name at least one of {', '.join(Loss.model_fields)}"])
