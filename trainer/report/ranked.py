"""Ranked lists: what the model answers to some queries, right and wrong framed."""

from __future__ import annotations

import numpy as np

from embae.datasets.keyed import generator
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
        parts.append(joined(_list(evidence, int(number), pictures) for number in chosen) if len(chosen)
                     else tag("p", "None.", class_="none"))
    told = (f"{evidence.last.row}, nearest first, by plain distances. At most {LISTS} queries of each kind, drawn by "
            "chance, one an identity. Images of the query's identity on its own camera are left out, as in the scores.")
    return section("lists", "Ranked lists", tag("p", told), *parts)


def _draw(evidence: Evidence, queries: np.ndarray, purpose: str) -> list[int]:
    """Some of the queries, of an identity each."""
    shuffled = generator(evidence.seed, "report", purpose).permutation(queries)
    _, places = np.unique(evidence.query_labels.pid[shuffled], return_index=True)
    return [int(query) for query in shuffled[np.sort(places)[:LISTS]]]


def answers(evidence: Evidence, query: int) -> np.ndarray:
    """The gallery images nearest to a query, as places in the gallery, without what the scores ignore."""
    model, gallery = evidence.last, evidence.gallery_labels
    pid, camid = evidence.query_labels.pid[query], evidence.query_labels.camid[query]
    ignored = gallery.junk | (gallery.known & (gallery.pid == pid) & (gallery.camid == camid))
    near = np.where(ignored, -np.inf, model.gallery @ model.query[query])
    order = np.argsort(-near, kind="stable")[:LENGTH]
    return order[np.isfinite(near[order])]


def _list(evidence: Evidence, query: int, pictures: Pictures) -> Markup:
    asked, gallery = evidence.query_labels, evidence.gallery_labels
    cells = [tag("figure", pictures(int(evidence.queries[query]), f"query, identity {asked.pid[query]}"),
                 tag("figcaption", f"camera {asked.camid[query]}"), class_="query")]
    for place in answers(evidence, query):
        right = bool(gallery.known[place] and gallery.pid[place] == asked.pid[query])
        said = "right" if right else "wrong"
        cells.append(tag("figure", pictures(int(evidence.gallery[place]), said),
                         tag("figcaption", "✓" if right else "✗", f" camera {gallery.camid[place]}"), class_=said))
    ranks = [f"{model.row}: first match at {model.results.first[query]}" for model in evidence.models]
    head = tag("p", tag("b", f"Identity {asked.pid[query]}"), f" · {' · '.join(ranks)}")
    return tag("div", head, tag("div", *cells, class_="strip"), class_="list")
