"""How a ranking by plain distances is refined: by query expansion, by re-ranking, by both or by neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from embae.trainer.retrieval.ranking import Part
    from embae.trainer.retrieval.scores import Labels, PerQuery
    from embae.trainer.retrieval.work_split import WorkSplit


MOST = 100
"""Images by which a query may be expanded."""


@dataclass(frozen=True)
class RankingOptions:
    """What is done to a ranking.

    Attributes:
        rerank: Whether it is by k-reciprocal re-ranking, with the settings of its authors; see `rerank.py`.
        expand: By how many images each query is expanded before; see `expansion.py`.
    """

    rerank: bool = False
    expand: int = 0

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> RankingOptions:
        """What a file of scores says by ``rerank`` and ``expand``; plain where it says neither."""
        expand = tree.get("expand")
        return cls(tree.get("rerank") is True, expand if type(expand) is int and 0 <= expand <= MOST else 0)

    @property
    def said(self) -> str:
        """For the heads of tables, after other words: with a comma, or empty."""
        expand = f", queries expanded by {self.expand} image{'s' * (self.expand > 1)}" if self.expand else ""
        return expand + ", k-reciprocal re-ranking" * self.rerank

    @property
    def brief(self) -> str:
        """The same for a label, or empty."""
        return ", ".join([f"expanded by {self.expand}"] * bool(self.expand) + ["re-ranked"] * self.rerank)

    def queries(self, query: np.ndarray, gallery: np.ndarray, gallery_labels: Labels, split: WorkSplit) -> np.ndarray:
        """What stands in place of raw embeddings of queries `(Q, D)`; the same on every rank."""
        from embae.trainer.retrieval.expansion import expanded_queries
        return expanded_queries(query, gallery, gallery_labels.junk, self.expand, split) if self.expand else query

    def distances(self, query: np.ndarray, gallery: np.ndarray, gallery_labels: Labels, split: WorkSplit) -> Part:
        """Distances of the queries to images of the gallery, by part, which ask for no junk; see `rank`."""
        import numpy as np

        from embae.trainer.retrieval.ranking import squared_distances
        from embae.trainer.retrieval.rerank import reranked_distances
        asked = self.queries(query, gallery, gallery_labels, split)
        if not self.rerank:
            return squared_distances(asked, gallery)
        kept = np.flatnonzero(~gallery_labels.junk)
        return reranked_distances(asked, gallery, kept, k1=20, k2=6, weight=0.3, split=split)

    def rank(self, query: np.ndarray, gallery: np.ndarray, query_labels: Labels, gallery_labels: Labels,
             split: WorkSplit) -> PerQuery:
        """Rank the gallery for every query; arguments as for `rank_embeddings`."""
        from embae.trainer.retrieval.ranking import rank_embeddings
        from embae.trainer.retrieval.rerank import rank_again
        asked = self.queries(query, gallery, gallery_labels, split)
        how = rank_again if self.rerank else rank_embeddings
        return how(asked, gallery, query_labels, gallery_labels, split=split)


PLAIN = RankingOptions()
