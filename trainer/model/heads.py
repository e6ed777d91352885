"""The heads of a model: embedding, nuisance, decoder, discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from embae.datasets.loading.to_device import to_device

Head = tuple[str | int, ...]
"""Whom a nuisance head serves: (dataset, camid), (dataset,) or, empty, everyone."""


def head(features: int, hidden: int, out: int) -> nn.Sequential:
    """Dense, ReLU, batch norm, dense: `(B, features)` to `(B, out)`."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.BatchNorm1d(hidden), nn.Linear(hidden, out))


def bnneck(features: int) -> nn.BatchNorm1d:
    """Batch norm with a bias that stays 0 (Luo et al. 2019, §III-E): `(B, features)` to `(B, features)`.

    The triplet loss looks at what goes in, the classifier and retrieval at what comes out.
    """
    neck = nn.BatchNorm1d(features)
    # A buffer: a parameter that does not train, in a part that does, would have to be told apart everywhere.
    del neck.bias
    neck.register_buffer("bias", torch.zeros(features))
    return neck


class NuisanceHeads(nn.Module):
    """N: one head for everyone, one a dataset, or one a camera.

    Args:
        heads: Whom each head serves, in the order of the weights.
    """

    def __init__(self, features: int, hidden: int, out: int, heads: Sequence[Head]):
        super().__init__()
        self.labels = [tuple(label) for label in heads]
        self.out = out
        self.heads = nn.ModuleList(head(features, hidden, out) for _ in heads)

    def forward(self, features: Tensor, which: np.ndarray, present: Sequence[int]) -> Tensor:
        """`(B, features)` to `(B, out)`.

        Args:
            features: Features of this rank's images.
            which: `(B,)` number of the head of each image; not on the device, which would have to be waited for.
            present: Heads with images in the *global* batch, rising: every rank walks through the same ones, since
                their batch norms exchange statistics, even where it has no rows of its own.
        """
        order = np.argsort(which, kind="stable")
        counts = np.bincount(which, minlength=len(self.heads))
        there, back = (to_device(places, features.device) for places in (order, np.argsort(order)))
        pieces = torch.split(features[there], counts[list(present)].tolist())
        out = torch.cat([self.heads[number](piece) for number, piece in zip(present, pieces, strict=True)])
        return out[back]


class Decoder(nn.Sequential):
    """D: dense, ReLU, dense, from [z, v] `(B, Z + V)` to features `(B, features)`."""

    def __init__(self, latent: int, hidden: int, features: int):
        super().__init__(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, features))


class Discriminator(nn.Sequential):
    """Tells codes [z, v] `(B, Z + V)` from noise (Makhzani et al. 2015): `(B, 1)` logits, high for noise."""

    def __init__(self, latent: int, hidden: int):
        super().__init__(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                         nn.Linear(hidden, 1))


def head_labels(per: Literal["shared", "dataset", "camera"], cameras: Sequence[tuple[str, int]]) -> list[Head]:
    """Whom the nuisance heads of a stage serve, from the (dataset, camid) of its images, sorted."""
    if per == "shared":
        return [()]
    return [*sorted({(dataset,) for dataset, _ in cameras})] if per == "dataset" else [*sorted(cameras)]


def head_numbers(labels: Sequence[Head], names: Sequence[str], dataset: np.ndarray, camid: np.ndarray) -> np.ndarray:
    """The head that serves each image: `(N,)`.

    Args:
        labels: Whom each head serves.
        names: Names of the datasets by number.
        dataset: `(N,)` number of each image's dataset.
        camid: `(N,)` its camera.
    """
    number = {label: position for position, label in enumerate(labels)}
    length = len(labels[0])
    pairs, inverse = np.unique(np.stack([dataset, camid], 1), axis=0, return_inverse=True)
    found = np.array([number[(names[d], int(c))[:length]] for d, c in pairs])
    return found[inverse.reshape(-1)]
