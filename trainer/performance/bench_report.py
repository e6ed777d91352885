"""The result of `embae bench`: a table, the limit in one sentence, JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from embae.datasets.console.tables import format_table, format_text

NAMES = {"loader": "loader alone", "model": "model alone", "forward": "  forward", "backward": "  backward",
         "optimizer": "  optimizer", "exchanges": "exchanges alone", "step": "whole step"}


class Timing(NamedTuple):
    """Seconds per step: the median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Of some steps, at least two."""
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        return cls(statistics.median(seconds), tenths[0], tenths[-1])


class Exchanges(NamedTuple):
    """Exchanges between ranks in a step, and the bytes that a rank sends in them by the ring algorithm."""

    number: int
    bytes: float


@dataclass(frozen=True)
class Bench:
    """The measurements of a stage.

    Attributes:
        batch: Images of a step, over all ranks.
        loader: ``dali``, ``webdataset``, or ``features`` where the stage reads cached ones.
        threads: Decoding threads a rank.
        resize: Height and width that every image is resized to; None where they are stored so.
        sent: The exchanges of a step.
        seconds: By what was measured.
    """

    recipe: str
    stage: str
    ranks: int
    device: str
    batch: int
    steps: int
    loader: str
    precision: str
    threads: int
    resize: tuple[int, int] | None
    sent: Exchanges
    seconds: dict[str, Timing]

    def rate(self, what: str) -> float:
        """Images/s."""
        return self.batch / self.seconds[what].median

    @property
    def limit(self) -> str:
        """``loader``, ``exchanges`` or ``model``: what limits a whole step."""
        loader, model = self.seconds["loader"].median, self.seconds["model"].median
        if loader > model:
            return "loader"
        exchanges = self.seconds["exchanges"].median if "exchanges" in self.seconds else 0.0
        return "exchanges" if exchanges > model / 2 else "model"

    def verdict(self) -> str:
        """The limit and what to change, in one sentence."""
        loader, model = (f"{self.rate(what):,.0f} images/s" for what in ("loader", "model"))
        if self.limit == "loader":
            sentence = f"The loader is the limit: {loader} against {model.split()[0]} of the model; "
            if self.loader == "features":
                sentence += "it only reads cached features, so give the stage a larger batch"
            else:
                sentence += f"give data.threads (now {self.threads} a rank) more CPUs"
                sentence += f", or shard with --size {self.resize[0]}x{self.resize[1]}" if self.resize else ""
        elif self.limit == "exchanges":
            share = 100 * self.seconds["exchanges"].median / self.seconds["model"].median
            sentence = (
                f"Exchanges between ranks are the limit: alone they take {share:.0f} % of the model's time; give "
                "the ranks a faster network, a larger batch, or start fewer of them"
            )
        else:
            phase = max(("forward", "backward", "optimizer"), key=lambda name: self.seconds[name].median)
            full = self.device != "cpu" and self.precision == "fp32"
            more = "precision: bf16, or more ranks" if full else "more ranks"
            sentence = (f"The model is the limit: {model} against {loader.split()[0]} of the loader, most of it in "
                    f"{phase}; give it {more}, or a smaller model.backbone or data.image")
        apart = max(self.seconds["loader"].median, self.seconds["model"].median)
        if self.device == "cpu" and self.seconds["step"].median > 1.2 * apart:
            sentence += f"; loader and model share the CPUs, and together reach {self.rate('step'):,.0f} images/s"
        return sentence + "."

    def text(self) -> str:
        """The table and the verdict."""
        ranks = f"{self.ranks} ranks" if self.ranks > 1 else "one rank"
        reads = "cached features (made up)" if self.loader == "features" else f"loader {self.loader}"
        head = (f"{self.recipe}, stage {self.stage}: {self.batch} images a step, {ranks} on {self.device}, "
                f"{self.precision}, {reads}; medians of {self.steps} steps, and the middle 80 %")
        rows = []
        for part, name in NAMES.items():
            if part in self.seconds:
                median, low, high = (1000 * value for value in self.seconds[part])
                rate = f"{self.rate(part):,.0f}" if not name.startswith(" ") and part != "exchanges" else ""
                rows.append([name, f"{median:.1f}", f"{low:.1f} … {high:.1f}", rate])
        sends = (f"A rank sends {self.sent.bytes / 1e6:,.2f} MB a step in {self.sent.number} exchanges (by the ring "
                 "algorithm)." if self.sent.number else "One rank exchanges nothing.")
        table = format_table(["", "ms a step", "middle 80 %", "images/s"], rows, left=[""])
        return "\n".join([format_text(head), table, format_text(sends), format_text(self.verdict())])

    def tree(self) -> dict[str, Any]:
        """As JSON: seconds are ``{"median", "low", "high"}``, `sent` has ``number`` and ``bytes``."""
        return {**asdict(self), "sent": self.sent._asdict(), "limit": self.limit, "verdict": self.verdict(),
                "seconds": {what: timing._asdict() for what, timing in self.seconds.items()}}
