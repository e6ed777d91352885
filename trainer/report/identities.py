"""The people that are hardest to find, and those whose last match ranks lowest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from embae.trainer.report.evidence import Evidence
from embae.trainer.report.markup import Markup, section, table, tag
from embae.trainer.report.pictures import Pictures

MOST = 12


def identities(evidence: Evidence, pictures: Pictures) -> Markup:
    """A table of the identities with the lowest mean AP."""
    people = list(_people(evidence))
    hardest = sorted(people, key=lambda one: (one[2], one[0]))[:MOST]
    rows = []
    for pid, queries, ap, first, last in hardest:
        answerable = np.flatnonzero((evidence.query_labels.pid == pid) & (evidence.last.results.first > 0))
        shown = pictures(int(evidence.queries[answerable[0]]), f"identity {pid}")
        rows.append([(pid, tag("span", shown, f" {pid}", class_="who")), queries, f"{ap:.3f}", f"{first:g}",
                     f"{last:,}"])
    caption = (f"The {len(rows)} of {len(people):,} identities with the lowest mean AP ({evidence.last.row}). The last "
            "match is where the last of a person's images stands, at the slowest of the queries.")
    head = ["identity", "queries", "mean AP", "first match, median", "last match"]
    return section("hardest", "Hardest and slowest identities", tag("p", caption), table(head, rows))


def _people(evidence: Evidence) -> Iterator[tuple[int, int, float, float, int]]:
    """Identity, queries with a match, their mean AP, median rank of the first match, worst rank of the last match."""
    results, query_labels, gallery = evidence.last.results, evidence.query_labels, evidence.gallery_labels
    matched = np.flatnonzero(results.first > 0)
    counts = np.array([np.count_nonzero(gallery.identified & (gallery.pid == query_labels.pid[query])
                                        & (gallery.camid != query_labels.camid[query])) for query in matched])
    last = np.rint(counts / results.inp[matched]).astype(int)
    for pid in np.unique(query_labels.pid[matched]):
        of_person = query_labels.pid[matched] == pid
        rows = matched[of_person]
        yield (int(pid), len(rows), float(results.ap[rows].mean()), float(np.median(results.first[rows])),
               int(last[of_person].max()))
