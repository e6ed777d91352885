"""The results of a search: matches of each query, as JSON and as text.

The JSON is stable; distances are those of `search.py`, or with re-ranking from 0 to 1::

    format            1
    model, gallery    folder of the export; name of the gallery's dataset or merged set
    images            how many were searched
    tta, rerank, expand
    queries           a list, in the order of --query:
      query           the file or key on the command line
      dataset, camid, camera    its camera, by number and name as below; null if it is not known
      pid             its identity, null if it is not known
      matches         a list, nearest first: rank (from 1), distance, dataset (of a merged set, the member), key,
                      camid, camera (its name: the sub-folder of a folder of images, else camid as text), pid (null
                      if it is not known, and for distractors), same (whether it has the query's identity, which
                      distractors never have; null if that is not known)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embae.datasets.console.tables import format_table
from embae.trainer.deployment.search import Search
from embae.trainer.retrieval.ranking_options import RankingOptions

if TYPE_CHECKING:
    from embae.trainer.deployment.query import Query
    from embae.trainer.deployment.vectors import Vectors
    from embae.trainer.recipe.scoring import TTA


@dataclass(frozen=True)
class Matches:
    """The gallery's images that are nearest to a query, nearest first.

    Attributes:
        query: The query.
        images: `(n,)`, numbers of the images in the gallery.
        distances: `(n,)`.
    """

    query: Query
    images: np.ndarray
    distances: np.ndarray


def find_matches(queries: Sequence[Query], vectors: Vectors, top: int, ranking: RankingOptions) -> list[Matches]:
    """Searches a gallery for each of several queries.

    Args:
        queries: The queries.
        vectors: The gallery; junk takes no part, and neither does an image that is the query itself.
        top: Number of matches of each query, as far as the gallery has so many images.
        ranking: How the ranking is refined.
    """
    search, results = Search(vectors), []
    for query in queries:
        left_out = vectors.junk if query.gallery_row is None else vectors.junk | vectors.is_row(*query.gallery_row)
        embedding = search.expanded(query.embedding, ranking.expand, left_out) if ranking.expand else query.embedding
        nearest = search.reranked if ranking.rerank else search.nearest
        results.append(Matches(query, *nearest(embedding, top, left_out)))
    return results


def results_tree(results: Sequence[Matches], vectors: Vectors, ranking: RankingOptions, export: Path,
                 tta: TTA) -> dict[str, Any]:
    """The JSON of a search: see the head of this file."""
    return {"format": 1, "model": str(export), "gallery": vectors.origin.name,
            "images": int((~vectors.junk).sum()), "tta": tta, "rerank": ranking.rerank, "expand": ranking.expand,
            "queries": [_query_tree(matches, vectors) for matches in results]}


def _query_tree(matches: Matches, vectors: Vectors) -> dict[str, Any]:
    query = matches.query
    dataset, camid = query.camera or (None, None)
    camera = vectors.camera_name(query.camera) if query.camera else None
    pairs = zip(matches.images.tolist(), matches.distances.tolist(), strict=True)
    return {"query": query.text, "dataset": dataset, "camid": camid, "camera": camera, "pid": query.pid,
            "matches": [{"rank": rank, "distance": round(distance, 6), **_match_tree(query, image, vectors)}
                        for rank, (image, distance) in enumerate(pairs, 1)]}


def _match_tree(query: Query, image: int, vectors: Vectors) -> dict[str, Any]:
    camera = vectors.datasets[vectors.dataset[image]], int(vectors.camid[image])
    pid = int(vectors.pid[image]) if vectors.labelled[image] else None
    comparable = query.pid is not None and (pid is not None or bool(vectors.distractor[image]))
    same = (camera[0], pid) == (query.camera[0] if query.camera else None, query.pid) if comparable else None
    return {"dataset": camera[0], "key": vectors.key(image), "camid": camera[1],
            "camera": vectors.camera_name(camera), "pid": pid, "same": same}


def format_results(tree: dict[str, Any], several_datasets: bool) -> str:
    """A table of matches for each query.

    Args:
        tree: What `results_tree` returns.
        several_datasets: Whether cameras are shown with the name of their dataset.
    """
    tables = []
    for query in tree["queries"]:
        rows = [[str(match["rank"]), f"{match['distance']:.3f}", camera_label(match, several_datasets),
                 "–" if match["pid"] is None else str(match["pid"]), match["key"]] for match in query["matches"]]
        tables.append(f"{query['query']}: nearest of {tree['images']:,} images of {tree['gallery']}\n"
                      + format_table(["rank", "distance", "camera", "pid", "key"], rows, left=["key"]))
    return "\n\n".join(tables)


def camera_label(match: dict[str, Any], several_datasets: bool) -> str:
    """The camera of a match, with its dataset if the gallery has several."""
    return f"{match['dataset']}:{match['camera']}" if several_datasets else match["camera"]
