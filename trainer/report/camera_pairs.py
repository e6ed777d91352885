"""How well people are found from one camera on another: a matrix of scores."""

from __future__ import annotations

import numpy as np

from embae.trainer.report.evidence import Evidence, Ranked, select_labels
from embae.trainer.report.markup import Markup, section, tag
from embae.trainer.retrieval.ranking import rank_embeddings

MOST = 12  # cameras, those with the most queries


def camera_pairs(evidence: Evidence) -> Markup:
    """One matrix for each model: mAP of the queries of one camera in the gallery of another."""
    camid, counts = np.unique(evidence.query_labels.camid, return_counts=True)
    cameras = sorted(camid[np.argsort(-counts, kind="stable")[:MOST]].tolist())
    if len(cameras) < 2:
        return section("cameras", "Camera by camera", tag("p", "One camera alone has queries.", class_="none"))
    caption = ("mAP of the queries of a row's camera among the gallery images of a column's. A light row is a camera "
            "whose queries find little, a light column one whose people are not found.")
    left_out = f" The {MOST} of {len(camid)} cameras with the most queries." if len(camid) > MOST else ""
    matrices = [tag("figure", tag("figcaption", model.row), _matrix(pair_scores(evidence, model, cameras), cameras))
                for model in evidence.models]
    return section(
        "cameras", "Camera by camera", tag("p", caption, left_out), tag("div", *matrices, class_="charts two")
    )


def pair_scores(evidence: Evidence, model: Ranked, cameras: list[int]) -> np.ndarray:
    """mAP `(C, C)` by the camera of the query and of the gallery; NaN for a pair without matches."""
    mean_ap = np.full((len(cameras), len(cameras)), np.nan)
    for at, camera in enumerate(cameras):
        queries = np.flatnonzero(evidence.query_labels.camid == camera)
        query_labels = select_labels(evidence.query_labels, queries)
        for to, other in enumerate(cameras):
            if other == camera:
                continue
            images = np.flatnonzero(evidence.gallery_labels.camid == other)
            if len(images):
                ap = rank_embeddings(model.query[queries], model.gallery[images], query_labels,
                                     select_labels(evidence.gallery_labels, images)).ap
                if not np.isnan(ap).all():
                    mean_ap[at, to] = np.nanmean(ap)
    return mean_ap


def _matrix(scores: np.ndarray, cameras: list[int]) -> Markup:
    head = [tag("th", "query \\ gallery", scope="col"), *(tag("th", camera, scope="col") for camera in cameras)]
    rows = []
    for camera, line in zip(cameras, scores, strict=True):
        cells = [tag("td", "–") if np.isnan(value) else
                 tag("td", f"{value:.2f}", style=f"--heat:{value:.3f}", class_="heat") for value in line]
        rows.append(tag("tr", tag("th", camera, scope="row"), *cells))
    return tag("div", tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="matrix"), class_="wide")
