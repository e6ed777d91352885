"""Stages that train nothing: `Stage.calibrate` and `Stage.cluster` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from embae.datasets.fields import Count, Fraction, Share, Strict, checked


class Calibrate(Strict):
    """Statistics of the target's images put into the model; nothing is trained."""

    what: Literal["batch-norm", "features", "embedding"]
    """Batch norms of the whole network; mean and deviation of the features; mean of the embeddings."""
    per: Literal["dataset", "camera"] = "camera"

    @model_validator(mode="after")
    def _camera(self) -> Calibrate:
        wrong = self.per == "dataset" and self.what != "batch-norm"
        return checked(self, [f"per: {self.what} is calibrated by camera; dataset goes with batch-norm"] * wrong)


class KMeans(Strict):
    """k-means; images stay whose features are near the centre of their cluster (Fan et al. 2017)."""

    clusters: Count
    similarity: Fraction = 0.85
    """Cosine that an image must exceed to stay."""
    smallest: Count = 2
    """Clusters with fewer images left are left out."""


class DBSCAN(Strict):
    """DBSCAN on k-reciprocal Jaccard distances (Zhong et al. 2017)."""

    eps: Fraction = 0.6
    min_samples: Count = 4
    k1: Count = 30
    """Images in which neighbours are looked for. Far above the images of a person it runs people together, and eps has
    to be smaller: of drawn people with 12 images each, 30 and 0.6 made 4 clusters, 30 and 0.3 made 110."""
    k2: Count = 6
    outliers: Literal["drop", "own"] = "drop"
    """Images in no cluster are left out, or each is a cluster of its own (Ge et al. 2020, arXiv 2006.02713).

    A pass takes every identity once, K images of it, and repeats those of one that has fewer: a cluster of one image
    fills K places of a batch with that image, augmented otherwise in each. It says what it is unlike, and next to
    nothing of what it is like, and counts as much as a cluster of a hundred: with 200 clusters and 3,000 outliers 94
    of 100 identities of a batch are single images, and a pass takes 16 times the steps. Take ``own`` where outliers
    are few against clusters, or where the loss needs the whole target in its classes.
    """

    @property
    def smallest(self) -> int:
        """Images of a cluster, about, at least."""
        return self.min_samples if self.outliers == "drop" else 1


class Linkage(Strict):
    """Average linkage on camera-aware Jaccard distances (Chen et al. 2024); see `linkage.py`, `camera_jaccard.py`."""

    distance: Share = 0.8
    """Mean distance of two clusters up to which they merge."""
    smallest: Count = 2
    """Clusters of fewer images are left out."""
    own: Count = 5
    """Neighbours of an image on its own camera that are looked at."""
    others: Count = 10
    """The same on all other cameras together."""
    average: Count = 2
    """Of each, so many are averaged over."""


class Cluster(Strict):
    """Pseudo-labels for the target's images, from clusters of their embeddings."""

    kmeans: KMeans | None = None
    dbscan: DBSCAN | None = None
    linkage: Linkage | None = None

    @model_validator(mode="after")
    def _one(self) -> Cluster:
        one = sum(keys is not None for _, keys in self) == 1
        return checked(self, [] if one else [f"give one of {', '.join(Cluster.model_fields)}"])
