"""The model's parts: `model` of a recipe."""

from __future__ import annotations

from typing import Literal

from embae.datasets.fields import Count, Flag, Strict


class Nuisance(Strict):
    """The nuisance heads: how wide, and how many."""

    dim: Count = 128
    per: Literal["shared", "dataset", "camera"] = "shared"


class Model(Strict):
    """The model's parts."""

    backbone: str = "mobilenetv1_100"
    pooling: Literal["avg", "gem"] = "avg"
    """Of the last feature map: its mean, or the generalised mean with an exponent that trains with the backbone."""
    last_stride: Literal[1, 2] = 2
    """Of a ResNet's last stage: 1 leaves a feature map twice as high and wide."""
    head: Literal["mlp", "bnneck"] = "mlp"
    """The embedding: dense, ReLU, batch norm, dense (arXiv 1807.10591 §3.1), sized by ``embedding`` and ``hidden``;
    or a batch norm of the features, with a classifier behind it and the triplet loss before it (arXiv 1903.07071)."""
    unit: Flag = False
    """Whether embeddings that leave the model have length 1: distances then rank as the cosine does."""
    embedding: Count = 128
    hidden: Count = 1024
    nuisance: Nuisance = Nuisance()
