"""How far apart images of one person are, and images of two."""

from __future__ import annotations

import numpy as np

from embae.datasets.sampling.keyed_random import generator
from embae.trainer.report.charts import histogram, legend
from embae.trainer.report.evidence import Evidence, Ranked
from embae.trainer.report.markup import Markup, section, tag

_EACH = 200  # other people's images compared with a query
_BINS = 48


def distances(evidence: Evidence) -> Markup:
    """Histograms of the distances of positive and negative pairs, one for each model."""
    pairs = [pair_distances(evidence, model) for model in evidence.models]
    far = max(float(values.max()) for pair in pairs for values in pair)
    edges = np.linspace(0, max(far, 1e-6) * 1.001, _BINS + 1)
    figures = []
    for model, pair in zip(evidence.models, pairs, strict=True):
        shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in
                  zip(("same person", "other people"), pair, strict=True)}
        label = f"{model.row}: a positive pair is closer than a negative one in {closer(*pair):.1%} of cases"
        figures.append(tag("figure", tag("figcaption", label), histogram(shares, edges, label=label),
                           legend(["same person, other camera", "other people"])))
    caption = ("Euclidean distances of embeddings of unit length, from queries to the gallery; the share of pairs in "
               f"each bin. Of other people, {_EACH} images a query, drawn by chance.")
    return section("distances", "Distances", tag("p", caption), tag("div", *figures, class_="charts two"))


def pair_distances(evidence: Evidence, model: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """Distances of all positive pairs `(P,)` and of some negative pairs `(N,)`."""
    query_labels, gallery = evidence.query_labels, evidence.gallery_labels
    draws = generator(evidence.seed, "report", "negatives")
    there = np.flatnonzero(~gallery.junk)
    same: list[np.ndarray] = []
    other: list[np.ndarray] = []
    for query in np.flatnonzero(query_labels.identified):
        alike = gallery.identified & (gallery.pid == query_labels.pid[query])
        places = np.flatnonzero(alike & (gallery.camid != query_labels.camid[query]))
        drawn = there[draws.integers(len(there), size=_EACH)] if len(there) else there
        for into, which in ((same, places), (other, drawn[~alike[drawn]])):
            cosine = model.gallery[which] @ model.query[query]
            into.append(np.sqrt(np.maximum(2 - 2 * cosine, 0)))
    return np.concatenate(same), np.concatenate(other)


def closer(same: np.ndarray, other: np.ndarray) -> float:
    """How often a positive pair is closer than a negative one, ties counted half: the area under the ROC curve."""
    ordered = np.sort(other)
    above = len(other) - np.searchsorted(ordered, same, "right")
    ties = np.searchsorted(ordered, same, "right") - np.searchsorted(ordered, same, "left")
    return float((above + ties / 2).mean() / len(other))
