"""The parts of a model besides the backbone: embedding, nuisance heads, decoder, discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from embae.datasets.loading.to_device import to_device
from embae.trainer.model.domain import Head


def head(features: int, hidden: int, out: int) -> nn.Sequential:
    """Dense, ReLU, batch norm, dense: `(B, features)` to `(B, out)`."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.BatchNorm1d(hidden), nn.Linear(hidden, out))


def bnneck(features: int) -> nn.BatchNorm1d:
    """Batch norm with a bias that stays 0 (Luo et al. 2019, §III-E): `(B, features)` to `(B, features)`.

    The triplet loss uses its input; the classifier and retrieval use its output.
    """
    neck = nn.BatchNorm1d(features)
    # A buffer, because every loop over the parameters of a trained part would have to skip a frozen parameter.
    del neck.bias
    neck.register_buffer("bias", torch.zeros(features))
    return neck


class NuisanceHeads(nn.Module):
    """N: one head for all images, one per dataset, or one per camera.

    Args:
        heads: The images that each head serves, in the order of the weights.
    """

    def __init__(self, features: int, hidden: int, out: int, heads: Sequence[Head]):
        super().__init__()
        self.labels = [tuple(label) for label in heads]
        self.out = out
        self.heads = nn.ModuleList(head(features, hidden, out) for _ in heads)

    def forward(self, features: Tensor, head_of_image: np.ndarray, present: Sequence[int]) -> Tensor:
        """`(B, features)` to `(B, out)`.

        Args:
            features: Features of this rank's images.
            head_of_image: `(B,)`, the number of the head of each image; on the CPU, since reading it from a device
                would wait for the device.
            present: Heads with images in the *global* batch, ascending: each rank runs the same heads, even those for
                which it has no rows, because their batch norms exchange statistics.
        """
        order = np.argsort(head_of_image, kind="stable")
        counts = np.bincount(head_of_image, minlength=len(self.heads))
        by_head, restored = (to_device(rows, features.device) for rows in (order, np.argsort(order)))
        pieces = torch.split(features[by_head], counts[list(present)].tolist())
        out = torch.cat([self.heads[number](piece) for number, piece in zip(present, pieces, strict=True)])
        return out[restored]


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
    """What the nuisance heads of a stage serve, from the (dataset, camid) of its images, sorted."""
    if per == "shared":
        return [()]
    return [*sorted({(dataset,) for dataset, _ in cameras})] if per == "dataset" else [*sorted(cameras)]


def head_numbers(labels: Sequence[Head], names: Sequence[str], dataset: np.ndarray, camid: np.ndarray) -> np.ndarray:
    """The number of the head that serves each image: `(N,)`.

    Args:
        labels: What each head serves.
        names: Names of the datasets by number.
        dataset: `(N,)`, the number of each image's dataset.
        camid: `(N,)`, the camera of each image.
    """
    number = {label: position for position, label in enumerate(labels)}
    length = len(labels[0])
    pairs, inverse = np.unique(np.stack([dataset, camid], 1), axis=0, return_inverse=True)
    heads = np.array([number[(names[d], int(c))[:length]] for d, c in pairs])
    return heads[inverse.reshape(-1)]
