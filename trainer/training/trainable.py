"""The interface of a module that an engine trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator

from torch import Tensor, nn

from embae.datasets.loading.batch import Batch


class Trainable(nn.Module):
    """A module that computes losses over a global batch.

    Attributes:
        active: Names of the losses that `forward` computes.
    """

    active: Collection[str]

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to call backward on, scaled for an engine that averages over ranks and parts, and a report.

        The report has the value of each active loss and further metrics: means over the global batch.

        Args:
            batch: A part of this rank's share of the global batch.
        """

    def unmoved(self, batch: Batch) -> Iterator[nn.Parameter]:
        """Trained parameters that the active losses leave alone on this batch; none by default."""
        return iter(())
