"""Query expansion against the same in words of numpy, and its ties, junk and ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.embedding_files import gallery as search_gallery
from helpers.rank_threads import together

from embae.trainer.deployment.search import Search
from embae.trainer.retrieval import expansion
from embae.trainer.retrieval import neighbours as nearest
from embae.trainer.retrieval.expansion import expanded_queries
from embae.trainer.retrieval.ranking_options import PLAIN, RankingOptions


def people(seed: int, queries: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of query and gallery, some eight images a person."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, images // 8), 6))
    both = (centres[rng.integers(len(centres), size=n)] for n in (queries, images))
    return tuple((x + 0.5 * rng.standard_normal(x.shape)).astype(np.float32) for x in both)  # type: ignore[return-value]


def literally(query: np.ndarray, gallery: np.ndarray, junk: np.ndarray, count: int) -> np.ndarray:
    """A query at a time, by full sorts of all distances."""
    q, g = (x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (query, gallery))
    kept, found = np.flatnonzero(~junk), []
    for one in q:
        nearest_images = kept[np.argsort(np.linalg.norm(g[kept] - one, axis=1), kind="stable")[:count]]
        found.append((one + g[nearest_images].sum(0)) / (1 + len(nearest_images)))
    return np.array(found)


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("junk", [0.0, 0.4])
def test_it_is_the_mean_of_a_query_and_the_nearest_images(count: int, junk: float) -> None:
    query, gallery = people(0, 20, 90)
    left_out = np.random.default_rng(1).random(90) < junk
    found = expanded_queries(query, gallery, left_out, count)
    np.testing.assert_allclose(found, literally(query, gallery, left_out, count), atol=1e-7)
    assert found.dtype == np.float32 and np.abs(found - literally(query, gallery, ~left_out, count)).max() > 0.01


def test_a_gallery_of_junk_leaves_queries_as_they_are_but_for_their_length() -> None:
    query, gallery = people(2, 4, 9)
    found = expanded_queries(query, gallery, np.ones(9, bool), 2)
    np.testing.assert_allclose(found, query / np.linalg.norm(query, axis=1, keepdims=True), atol=1e-7)


def test_equal_images_are_taken_in_the_gallerys_order() -> None:
    """Two that are as far away in other directions: the first of them alone counts."""
    gallery, query = np.array([[3, -3], [1, 1]], np.float32), np.array([[2, 0]], np.float32)
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(expanded_queries(query, gallery, np.zeros(2, bool), 1), [[(1 + half) / 2, -half / 2]],
                               atol=1e-7)


def test_search_expands_as_scoring_does(tmp_path: Path) -> None:
    query, gallery = people(3, 12, 150)
    gallery[40:60] = gallery[7]  # ties
    left_out = np.random.default_rng(4).random(150) < 0.2
    search = Search(search_gallery(tmp_path, gallery))
    wanted = expanded_queries(query, gallery, left_out, 5)
    assert all(np.array_equal(search.expanded(one, 5, left_out), row) for one, row in zip(query, wanted, strict=True))


def test_blocks_and_ranks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = people(5, 30, 200)
    gallery[50:80] = gallery[10]
    junk = np.random.default_rng(6).random(200) < 0.1
    wanted = expanded_queries(query, gallery, junk, 4)
    for module, sizes in ((nearest, {"_SIMILARITIES": 300, "_FIRST": 13, "_COLUMNS": 31}),
                          (expansion, {"_NUMBERS": 60, "_QUERIES": 7})):
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)
    assert np.array_equal(expanded_queries(query, gallery, junk, 4), wanted)
    for world_size in (2, 3):
        for found in together(world_size, lambda split: expanded_queries(query, gallery, junk, 4, split)):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("tree, wanted", [
    ({}, PLAIN), ({"rerank": True, "expand": 3}, RankingOptions(True, 3)), ({"rerank": 1, "expand": True}, PLAIN),
    ({"expand": -1}, PLAIN), ({"expand": 10**9}, PLAIN), ({"expand": "3"}, PLAIN),
])
def test_what_a_file_says(tree: dict[str, object], wanted: RankingOptions) -> None:
    assert RankingOptions.of(tree) == wanted


def test_how_a_ranking_is_refined_is_said() -> None:
    assert [one.suffix for one in (PLAIN, RankingOptions(expand=1), RankingOptions(True, 2))] == [
        "", ", queries expanded by 1 image", ", queries expanded by 2 images, k-reciprocal re-ranking"]
    assert [one.label for one in (PLAIN, RankingOptions(expand=1), RankingOptions(True, 2))] == [
        "", "expanded by 1", "expanded by 2, re-ranked"]
