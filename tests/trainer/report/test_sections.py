"""What the sections on images show is what the metric says, on embeddings that are made up."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.invented_evidence import evidence
from helpers.noise_datasets import shards

from embae.datasets.index.arrow_index import Index
from embae.datasets.sampling.for_display import choose_for_display
from embae.datasets.sampling.view import View
from embae.trainer.report.camera_pairs import camera_pairs, pair_scores
from embae.trainer.report.distances import closer, distances, pair_distances
from embae.trainer.report.evidence import Evidence
from embae.trainer.report.identities import identities
from embae.trainer.report.maps import project
from embae.trainer.report.pictures import Pictures
from embae.trainer.report.ranked import LISTS, answers, ranked_lists
from embae.trainer.retrieval.ranking_options import PLAIN, RankingOptions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return evidence(Index.open(shards(tmp_path_factory.mktemp("report")) / "labelled" / "target"))


@pytest.mark.parametrize(
    "refined", [PLAIN, RankingOptions(expand=2), RankingOptions(rerank=True), RankingOptions(True, 3)]
)
def test_answers_are_ranked_as_the_scores_rank(made: Evidence, refined: RankingOptions) -> None:
    made = evidence(made.index, refined=refined)
    first = made.last.results.first
    for query, places in enumerate(answers(made, np.arange(len(made.queries)))):
        right = made.gallery_labels.pid[places] == made.query_labels.pid[query]
        own = right & (made.gallery_labels.camid[places] == made.query_labels.camid[query])
        assert not own.any()
        assert (np.flatnonzero(right)[0] + 1 if right.any() else 99) == (first[query] if first[query] <= 8 else 99)


def test_lists_frame_right_and_wrong(made: Evidence) -> None:
    html = ranked_lists(made, Pictures(made.index))
    good, bad = html.split("<h3>")[1:]
    first = made.last.results.first
    assert f"right: {(first == 1).sum()} of {len(first)} queries" in good
    assert all('class="right"' in part.split("</figure>")[1] for part in good.split('class="list"')[1:])
    assert all('class="wrong"' in part.split("</figure>")[1] for part in bad.split('class="list"')[1:])
    assert good.count('class="list"') == min(LISTS, len(np.unique(made.query_labels.pid[first == 1])))
    assert html.count("data:image/jpeg;base64,") == html.count("<figure")
    assert html == ranked_lists(made, Pictures(made.index))


def test_a_picture_that_cannot_be_read_is_a_box(made: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.pread", lambda *_: b"")
    assert "not readable" in Pictures(made.index)(0, "x")


def test_pairs_of_cameras_are_scored_by_themselves(made: Evidence) -> None:
    scores = pair_scores(made, made.last, [0, 1, 2])
    assert np.isnan(np.diag(scores)).all() and not np.isnan(scores[~np.eye(3, dtype=bool)]).any()
    perfect = replace(made.last, query=np.eye(100)[made.query_labels.pid], gallery=np.eye(100)[made.gallery_labels.pid])
    assert np.nanmin(pair_scores(made, perfect, [0, 1, 2])) == 1
    html = camera_pairs(replace(made, models=[made.models[0], perfect]))
    assert html.count('class="matrix"') == 2 and html.count(">1.00<") == 6


def test_distances_tell_pairs_apart(made: Evidence) -> None:
    noisy, clear = (closer(*pair_distances(made, model)) for model in made.models)
    assert 0.5 < noisy < clear <= 1
    same, other = pair_distances(made, made.last)
    asked, gallery = made.query_labels, made.gallery_labels
    pairs = (asked.pid[:, None] == gallery.pid) & (asked.camid[:, None] != gallery.camid)
    assert len(same) == pairs.sum() and len(other) > len(same)
    assert f"{clear:.1%}" in distances(made)


def test_closer_is_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(0)
    same, other = rng.integers(0, 6, 40).astype(float), rng.integers(2, 9, 70).astype(float)
    by_hand = np.mean([(a < other).mean() + (a == other).mean() / 2 for a in same])
    assert closer(same, other) == pytest.approx(by_hand)


def test_the_hardest_identities_come_first(made: Evidence) -> None:
    html = identities(made, Pictures(made.index))
    shown = [float(value) for value in re.findall(r"<td class=\"n\">(0\.\d{3}|1\.000)</td>", html)]
    pids = np.unique(made.query_labels.pid)
    ap = sorted(made.last.results.ap[made.query_labels.pid == pid].mean() for pid in pids)
    assert shown == pytest.approx(ap[:12], abs=6e-4)


@pytest.mark.parametrize("root", ["labelled", "nulled"])
def test_maps_choose_the_same_images_again(made: Evidence, root: str) -> None:
    index = Index.open(made.index.root.parent.parent / root / "target")  # type: ignore[union-attr]
    view = View([index], "train")
    most = {"images": 30, "identities": 5}
    chosen = choose_for_display(view, 3, **most)
    assert np.array_equal(chosen, choose_for_display(view, 3, **most)) and len(np.unique(chosen)) == len(chosen) <= 30
    every = choose_for_display(View([index], "query", "gallery"), 3, images=600, identities=40)
    assert len(every) == index.count("query") + index.count("gallery")


def test_a_map_keeps_groups_together() -> None:
    group = np.arange(60) % 3
    codes = 20 * np.eye(3)[group] + np.random.default_rng(0).normal(size=(60, 3))
    places = project(codes, 0)
    assert np.array_equal(places, project(codes, 0)) and places.shape == (60, 2)
    near = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(60)
    assert (group[near.argmin(1)] == group).all()
    assert project(np.ones((2, 1)), 0).shape == (2, 2)
