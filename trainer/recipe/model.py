"""The model's parts: `model` of a recipe."""

from __future__ import annotations

from typing import Literal

from embae.datasets.fields import Count, Flag, Strict


class Nuisance(Strict):
    """The nuisance heads: their width and number."""

    dim: Count = 128
    per: Literal["shared", "dataset", "camera"] = "shared"


class Model(Strict):
    """The model's parts."""

    backbone: str = "mobilenetv1_100"
    pooling: Literal["avg", "gem"] = "avg"
    """Of the last feature map: the mean, or the generalised mean, whose exponent trains with the backbone."""
    last_stride: Literal[1, 2] = 2
    """Of a ResNet's last stage: with 1 the feature map is twice as high and wide."""
    head: Literal["mlp", "bnneck"] = "mlp"
    """The embedding: dense, ReLU, batch norm, dense (arXiv 1807.10591 §3.1), sized by ``embedding`` and ``hidden``;
    or a batch norm of the features, with the classifier after it and the triplet loss before it (arXiv 1903.07071)."""
    unit: Flag = False
    """Whether the model's embeddings have length 1, so that distances rank as the cosine does."""
    embedding: Count = 128
    hidden: Count = 1024
    nuisance: Nuisance = Nuisance()
