"""Ranked lists: the nearest gallery images of some queries, with right and wrong ones framed."""

from __future__ import annotations

import numpy as np

from embae.datasets.sampling.keyed_random import generator
from embae.trainer.report.evidence import Evidence
from embae.trainer.report.markup import Markup, joined, section, tag
from embae.trainer.report.pictures import Pictures

LISTS, LENGTH = 6, 8  # of each kind; images


def ranked_lists(evidence: Evidence, pictures: Pictures) -> Markup:
    """Lists of queries whose first match is right, and of queries whose first match is wrong, drawn at random."""
    first = evidence.last.results.first
    kinds = (("The first answer is right", first == 1), ("The first answer is wrong", first > 1))
    parts = []
    for title, which in kinds:
        chosen = _draw(evidence, np.flatnonzero(which), title)
        count = int(which.sum())
        parts.append(tag("h3", f"{title}: {count:,} of {int((first > 0).sum()):,} queries"))
        ranked_places = answers(evidence, np.array(chosen, np.int64))
        parts.append(joined(_list(evidence, query, places, pictures)
                            for query, places in zip(chosen, ranked_places, strict=True)) if len(chosen)
                     else tag("p", "None.", class_="none"))
    caption = (
        f"{evidence.last.row}, nearest first{evidence.refined.suffix}. At most {LISTS} queries of each kind, drawn "
        "by chance, one an identity. Images of the query's identity on its own camera are left out, as in the "
        "scores."
    )
    return section("lists", "Ranked lists", tag("p", caption), *parts)


def _draw(evidence: Evidence, queries: np.ndarray, purpose: str) -> list[int]:
    """Some of the queries, one for each identity."""
    shuffled = generator(evidence.seed, "report", purpose).permutation(queries)
    _, places = np.unique(evidence.query_labels.pid[shuffled], return_index=True)
    return [int(query) for query in shuffled[np.sort(places)[:LISTS]]]


def answers(evidence: Evidence, queries: np.ndarray) -> list[np.ndarray]:
    """The gallery images nearest to each query, as rows of the gallery, without those that scores ignore."""
    query_labels, gallery, orders = evidence.query_labels, evidence.gallery_labels, []
    for query, near in zip(queries, evidence.last.near(queries), strict=True):
        same_person, same_camera = gallery.pid == query_labels.pid[query], gallery.camid == query_labels.camid[query]
        near[gallery.identified & same_person & same_camera] = np.inf
        order = np.argsort(near, kind="stable")[:LENGTH]
        orders.append(order[np.isfinite(near[order])])
    return orders


def _list(evidence: Evidence, query: int, places: np.ndarray, pictures: Pictures) -> Markup:
    query_labels, gallery = evidence.query_labels, evidence.gallery_labels
    cells = [tag("figure", pictures(int(evidence.queries[query]), f"query, identity {query_labels.pid[query]}"),
                 tag("figcaption", f"camera {query_labels.camid[query]}"), class_="query")]
    for place in places:
        right = bool(gallery.identified[place] and gallery.pid[place] == query_labels.pid[query])
        verdict = "right" if right else "wrong"
        alt = f"{verdict}, {f'identity {gallery.pid[place]}' if gallery.identified[place] else 'unknown person'}"
        cells.append(tag("figure", pictures(int(evidence.gallery[place]), alt),
                         tag("figcaption", "✓" if right else "✗", f" camera {gallery.camid[place]}"), class_=verdict))
    ranks = [f"{model.row}: first match at {model.results.first[query]}" for model in evidence.models]
    head = tag("p", tag("b", f"Identity {query_labels.pid[query]}"), f" · {' · '.join(ranks)}")
    return tag("div", head, tag("div", *cells, class_="strip"), class_="list")
