"""Ranked lists: what the model answers to some queries, right and wrong framed."""

from __future__ import annotations

import numpy as np

from embae.datasets.sampling.keyed_random import generator
from embae.trainer.report.evidence import Evidence
from embae.trainer.report.markup import Markup, joined, section, tag
from embae.trainer.report.pictures import Pictures

LISTS, LENGTH = 6, 8  # of each kind; images


def ranked_lists(evidence: Evidence, pictures: Pictures) -> Markup:
    """Lists of queries whose first answer is right, and of such whose is wrong, drawn by chance among each."""
    first = evidence.last.results.first
    kinds = (("The first answer is right", first == 1), ("The first answer is wrong", first > 1))
    parts = []
    for title, which in kinds:
        chosen = _draw(evidence, np.flatnonzero(which), title)
        count = int(which.sum())
        parts.append(tag("h3", f"{title}: {count:,} of {int((first > 0).sum()):,} queries"))
        found = answers(evidence, np.array(chosen, np.int64))
        parts.append(joined(_list(evidence, query, places, pictures)
                            for query, places in zip(chosen, found, strict=True)) if len(chosen)
                     else tag("p", "None.", class_="none"))
    told = (f"{evidence.last.row}, nearest first{evidence.refined.said}. At most {LISTS} queries of each kind, drawn "
            "by chance, one an identity. Images of the query's identity on its own camera are left out, as in the "
            "scores.")
    return section("lists", "Ranked lists", tag("p", told), *parts)


def _draw(evidence: Evidence, queries: np.ndarray, purpose: str) -> list[int]:
    """Some of the queries, of an identity each."""
    shuffled = generator(evidence.seed, "report", purpose).permutation(queries)
    _, places = np.unique(evidence.query_labels.pid[shuffled], return_index=True)
    return [int(query) for query in shuffled[np.sort(places)[:LISTS]]]


def answers(evidence: Evidence, queries: np.ndarray) -> list[np.ndarray]:
    """The gallery images nearest to each query, as places in the gallery, without what the scores ignore."""
    asked, gallery, found = evidence.query_labels, evidence.gallery_labels, []
    for query, near in zip(queries, evidence.last.near(queries), strict=True):
        near[gallery.known & (gallery.pid == asked.pid[query]) & (gallery.camid == asked.camid[query])] = np.inf
        order = np.argsort(near, kind="stable")[:LENGTH]
        found.append(order[np.isfinite(near[order])])
    return found


def _list(evidence: Evidence, query: int, places: np.ndarray, pictures: Pictures) -> Markup:
    asked, gallery = evidence.query_labels, evidence.gallery_labels
    cells = [tag("figure", pictures(int(evidence.queries[query]), f"query, identity {asked.pid[query]}"),
                 tag("figcaption", f"camera {asked.camid[query]}"), class_="query")]
    for place in places:
        right = bool(gallery.known[place] and gallery.pid[place] == asked.pid[query])
        said = "right" if right else "wrong"
        alt = f"{said}, {f'identity {gallery.pid[place]}' if gallery.known[place] else 'nobody known'}"
        cells.append(tag("figure", pictures(int(evidence.gallery[place]), alt),
                         tag("figcaption", "✓" if right else "✗", f" camera {gallery.camid[place]}"), class_=said))
    ranks = [f"{model.row}: first match at {model.results.first[query]}" for model in evidence.models]
    head = tag("p", tag("b", f"Identity {asked.pid[query]}"), f" · {' · '.join(ranks)}")
    return tag("div", head, tag("div", *cells, class_="strip"), class_="list")
