"""Average linkage on camera-aware Jaccard distances (Chen et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from embae.datasets.fields import Count, Share
from embae.trainer.clustering.method import ClusteringMethod

if TYPE_CHECKING:
    import numpy as np

    from embae.trainer.retrieval.work_split import WorkSplit


class Linkage(ClusteringMethod):
    """Average linkage on camera-aware Jaccard distances; see `average_linkage.py` and `camera_jaccard.py`."""

    by_camera: ClassVar[bool] = True
    advice: ClassVar[str] = "a larger distance"

    distance: Share = 0.8
    """Mean distance of two clusters up to which they merge."""
    smallest: Count = 2
    """Clusters of fewer images are left out."""
    own: Count = 5
    """Number of nearest images on the image's own camera among which neighbours are looked for."""
    others: Count = 10
    """The same on all other cameras together."""
    average: Count = 2
    """Number of nearest images of each kind whose weights are averaged."""

    def labels(self, embeddings: np.ndarray, cameras: np.ndarray, *, seed: int, split: WorkSplit) -> np.ndarray:
        from embae.trainer.clustering.average_linkage import average_linkage
        from embae.trainer.clustering.camera_jaccard import camera_aware_distances

        distances = camera_aware_distances(embeddings, cameras, same_camera=self.own, other_cameras=self.others,
                                           average=self.average, split=split)
        return split.on_first(lambda: average_linkage(distances, distance=self.distance, smallest=self.smallest))

    @property
    def smallest_cluster(self) -> int:
        return self.smallest
