"""How query and gallery are scored: `scoring` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from embae.datasets.fields import Count, Strict
from embae.trainer.retrieval.ranking_options import MOST, RankingOptions

TTA = Literal["none", "flip", "ten-crop"]


class Scoring(Strict):
    """How query and gallery are scored."""

    tta: TTA = "flip"
    batch: Count = 256
    rerank: bool = False
    """Rank by k-reciprocal re-ranking (Zhong et al. 2017) instead of plain distances."""
    expand: Annotated[int, Field(ge=0, le=MOST, strict=True)] = 0
    """Number of nearest images that each query is expanded by before ranking (Chum et al. 2007); 0: none."""

    @property
    def refined(self) -> RankingOptions:
        """What is done to a ranking by plain distances."""
        return RankingOptions(self.rerank, self.expand)
