"""The clustering methods that a recipe can name: one line for each."""

from __future__ import annotations

from pydantic import model_validator

from embae.datasets.fields import Strict, checked
from embae.trainer.clustering.dbscan import DBSCAN
from embae.trainer.clustering.kmeans import KMeans
from embae.trainer.clustering.linkage import Linkage
from embae.trainer.clustering.method import ClusteringMethod


class Cluster(Strict):
    """Pseudo-labels for the target's images, from clusters of their embeddings; the recipe names one method."""

    kmeans: KMeans | None = None
    dbscan: DBSCAN | None = None
    linkage: Linkage | None = None

    @property
    def key(self) -> str:
        """The key that names the method."""
        return next(key for key, method in self if method is not None)

    @property
    def method(self) -> ClusteringMethod:
        """The method with its keys."""
        method: ClusteringMethod = getattr(self, self.key)
        return method

    @model_validator(mode="after")
    def _one_method(self) -> Cluster:
        one_method = sum(method is not None for _, method in self) == 1
        return checked(self, [] if one_method else [f"give one of {', '.join(Cluster.model_fields)}"])
