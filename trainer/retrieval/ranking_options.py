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
"""The largest number of images by which a query may be expanded."""


@dataclass(frozen=True)
class RankingOptions:
    """How a ranking is refined.

    Attributes:
        rerank: Whether to re-rank by k-reciprocal neighbours, with the settings of its authors; see `rerank.py`.
        expand: The number of nearest images by which each query is expanded first; see `expansion.py`.
    """

    rerank: bool = False
    expand: int = 0

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> RankingOptions:
        """The options ``rerank`` and ``expand`` of a file of scores; plain ranking if it has neither."""
        expand = tree.get("expand")
        return cls(tree.get("rerank") is True, expand if type(expand) is int and 0 <= expand <= MOST else 0)

    @property
    def suffix(self) -> str:
        """The options for the heading of a table, to append to other words: with a leading comma, or empty."""
        expand = f", queries expanded by {self.expand} image{'s' * (self.expand > 1)}" if self.expand else ""
        return expand + ", k-reciprocal re-ranking" * self.rerank

    @property
    def label(self) -> str:
        """The options for a label, or empty."""
        return ", ".join([f"expanded by {self.expand}"] * bool(self.expand) + ["re-ranked"] * self.rerank)

    def queries(self, query: np.ndarray, gallery: np.ndarray, gallery_labels: Labels, split: WorkSplit) -> np.ndarray:
        """The embeddings to rank by in place of the raw embeddings of queries: `(Q, D)`, the same on every rank."""
        from embae.trainer.retrieval.expansion import expanded_queries
        return expanded_queries(query, gallery, gallery_labels.junk, self.expand, split) if self.expand else query

    def distances(self, query: np.ndarray, gallery: np.ndarray, gallery_labels: Labels, split: WorkSplit) -> Part:
        """Distances of the queries to parts of the gallery, none of which may contain junk; see `rank`."""
        import numpy as np

        from embae.trainer.retrieval.ranking import squared_distances
        from embae.trainer.retrieval.rerank import Reranking, reranked_distances
        expanded = self.queries(query, gallery, gallery_labels, split)
        if not self.rerank:
            return squared_distances(expanded, gallery)
        return reranked_distances(expanded, gallery, np.flatnonzero(~gallery_labels.junk), Reranking(), split)

    def rank(self, query: np.ndarray, gallery: np.ndarray, query_labels: Labels, gallery_labels: Labels,
             split: WorkSplit) -> PerQuery:
        """Ranks the gallery for every query; arguments as for `rank_embeddings`."""
        from embae.trainer.retrieval.ranking import RankingWork, rank_embeddings
        from embae.trainer.retrieval.rerank import rank_again
        expanded, work = self.queries(query, gallery, gallery_labels, split), RankingWork(split)
        if self.rerank:
            return rank_again(expanded, gallery, query_labels, gallery_labels, work=work)
        return rank_embeddings(expanded, gallery, query_labels, gallery_labels, work)


PLAIN = RankingOptions()
