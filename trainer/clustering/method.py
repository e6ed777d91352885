"""What a clustering method is: the recipe keys of the method, and the computation of labels with them.

A new method is one file with a subclass of `ClusteringMethod`, and one line in `registry.py`. A login node loads a
recipe in under a second, so the file imports scipy, scikit-learn and torch only inside the functions that compute.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from embae.datasets.fields import Strict

if TYPE_CHECKING:
    import numpy as np

    from embae.trainer.retrieval.work_split import WorkSplit


class ClusteringMethod(Strict):
    """The recipe keys of one clustering method, and what the program asks of the method."""

    by_camera: ClassVar[bool] = False
    """Whether the cameras of the images change the clusters."""
    advice: ClassVar[str]
    """How to change the keys when no image is left in a cluster, such as ``a larger eps``."""

    @abstractmethod
    def labels(self, embeddings: np.ndarray, cameras: np.ndarray, *, seed: int, split: WorkSplit) -> np.ndarray:
        """Clusters embeddings; the result is the same bit for bit on any number of ranks and threads.

        Args:
            embeddings: `(N, Z)` float32, in an order that does not depend on identities; may be memory-mapped.
            cameras: `(N,)`, the number of the camera of each image.
            seed: Seed of the run.
            split: The ranks. Each calls this with the same arguments; what is not shared between them belongs into
                `split.on_first`.

        Returns:
            On every rank, `(N,)` int64: clusters from 0 without gaps, −1 for an image in no cluster.

        Raises:
            ValueError: The embeddings cannot be clustered with these keys.
        """

    @property
    def smallest_cluster(self) -> int:
        """About the fewest images of a cluster: this bounds the number of clusters before they are computed."""
        return 1

    def cluster_count(self, images: int, cluster_size: int, least: int) -> int:
        """The number of clusters to plan for while the labels do not exist.

        Args:
            images: Number of images to cluster.
            cluster_size: Assumed images of a cluster; ignored by a method whose keys fix the number of clusters.
            least: Assumed lower bound of the number; ignored likewise.
        """
        return max(least, images // cluster_size)

    def mistakes(self, images: int) -> list[str]:
        """Keys that do not fit the number of images, each as a line ``key: sentence``."""
        return []
