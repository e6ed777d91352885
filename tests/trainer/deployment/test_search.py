"""Search in a gallery against ordering all of it, expansion and re-ranking against plain statements of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_run
from helpers.embedding_files import gallery

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.trainer.deployment.search import Search
from embae.trainer.deployment.vectors import Vectors
from embae.trainer.retrieval.rerank import Reranking, reranked_distances
from embae.trainer.retrieval.work_split import WorkSplit


def numbers(count: int, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) / np.linalg.norm(x, axis=-1, keepdims=True)


def ordered(query: np.ndarray, embeddings: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distances = np.linalg.norm(unit(query) - unit(embeddings), axis=1)
    order = np.argsort(distances, kind="stable")
    order = order[~left_out[order]]
    return order, distances[order]


@pytest.mark.parametrize("top", [1, 7, 500])
def test_nearest_are_those_of_ordering_everything(top: int, tmp_path: Path) -> None:
    embeddings, query = numbers(300), numbers(1, seed=1)[0]
    left_out = np.random.default_rng(2).random(300) < 0.2
    found, distances = Search(gallery(tmp_path, embeddings)).nearest(query, top, left_out)
    wanted, apart = ordered(query, embeddings, left_out)
    assert np.array_equal(found, wanted[:top])
    np.testing.assert_allclose(distances, apart[:top], atol=1e-3)


def test_equal_images_come_in_the_gallerys_order_however_long_they_are(tmp_path: Path) -> None:
    """In exact numbers: lengths differ by powers of two and more, the direction by noise in the last bits."""
    one = numbers(1)[0]
    scale = np.array([1, 2, 0.25, 3, 1e6, 1e-6, 7], np.float32)
    embeddings = np.concatenate([numbers(5, seed=3), scale[:, None] * one, numbers(5, seed=4)])
    nothing = np.zeros(len(embeddings), bool)
    search = Search(gallery(tmp_path, embeddings))
    found, distances = search.nearest(5 * one, 7, nothing)
    assert found.tolist() == [5, 6, 7, 8, 9, 10, 11] and (distances == 0).all()
    assert search.nearest(one, 2, nothing)[0].tolist() == [5, 6]
    assert search.nearest(one, 3, ~nothing)[0].tolist() == []


def test_a_zero_vector_is_nobodys_neighbour(tmp_path: Path) -> None:
    embeddings = np.concatenate([np.zeros((1, 6), np.float32), numbers(4)])
    found, distances = Search(gallery(tmp_path, embeddings)).nearest(embeddings[2], 5, np.zeros(5, bool))
    assert found[0] == 2 and np.isfinite(distances).all()


def test_expansion_is_the_mean_of_unit_vectors(tmp_path: Path) -> None:
    """By hand: of (1, 0), with the images (0, 2) and (3, 4) nearest in another order, and one that is opposite."""
    embeddings = np.array([[0, 2], [3, 4], [-1, 0]], np.float32)
    search, nothing = Search(gallery(tmp_path, embeddings)), np.zeros(3, bool)
    query = np.array([10, 0], np.float32)
    np.testing.assert_allclose(search.expanded(query, 1, nothing), [(1 + 0.6) / 2, 0.8 / 2], atol=1e-7)
    np.testing.assert_allclose(search.expanded(query, 2, nothing), [1.6 / 3, 1.8 / 3], atol=1e-7)
    np.testing.assert_allclose(search.expanded(query, 1, np.array([False, True, False])), [0.5, 0.5], atol=1e-7)


def test_re_ranking_is_that_of_evaluate_on_a_small_gallery(tmp_path: Path) -> None:
    centres = numbers(12, seed=5)
    embeddings = np.repeat(centres, 8, 0) + 0.5 * numbers(96, seed=6)
    query, left_out = centres[3] + 0.5 * numbers(1, seed=7)[0], np.zeros(96, bool)
    left_out[[2, 50]] = True
    found, distances = Search(gallery(tmp_path, embeddings)).reranked(query, 10, left_out)
    kept = np.flatnonzero(~left_out)
    part = reranked_distances(query[None], embeddings, kept, Reranking(), WorkSplit())
    wanted = part(kept)(np.array([0]))[0]
    assert set(found) == set(kept[np.argsort(wanted, kind="stable")[:10]])
    np.testing.assert_allclose(distances, np.sort(wanted)[:10], atol=1e-9)
    plain = Search(gallery(tmp_path, embeddings)).nearest(query, 10, left_out)[0]
    assert found.tolist() != plain.tolist()
    assert len(Search(gallery(tmp_path, embeddings[:3])).reranked(query, 10, np.zeros(3, bool))[0]) == 3
    assert not len(Search(gallery(tmp_path, embeddings[:3])).reranked(query, 10, np.ones(3, bool))[0])


def test_a_file_of_embeddings_holds_what_the_index_knows(tmp_path: Path) -> None:
    index, embeddings = Index.open(tiny_run.shards() / "park"), numbers(50)
    found = gallery(tmp_path, embeddings)
    every = np.arange(50)
    assert len(found) == 50 and np.array_equal(found[every], embeddings) and found.width == 6
    assert np.array_equal(found[np.array([40, 3, 3])], embeddings[[40, 3, 3]])
    assert [found.key(image) for image in (0, 49)] == [index.key(0), index.key(49)]
    assert np.array_equal(found.camid, index.camid[:50]) and np.array_equal(found.row, every)
    known = index.labelled[:50] & (index.role[:50] == 0)
    assert np.array_equal(found.labelled, known) and np.array_equal(found.pid[known], index.pid[:50][known])
    assert not found.junk.any() or np.array_equal(found.junk, index.role[:50] == 2)
    # Mapped, not read: the numbers lie in the file.
    assert all(not part.flags.owndata and not part.flags.writeable for part in found.parts)
    assert [path.name for path in tmp_path.iterdir()] == ["some.arrow"]


def test_broken_files_of_embeddings_are_reported(tmp_path: Path) -> None:
    gallery(tmp_path, numbers(20))
    data = (tmp_path / "some.arrow").read_bytes()
    for name, wrong in (("cut", data[:len(data) // 2]), ("empty", b""), ("text", b"hello"),
                        ("other", data.replace(b'"format": 1', b'"format": 9'))):
        (tmp_path / name).write_bytes(wrong)
        with pytest.raises(DataError, match=f"{name}: not a whole file of embeddings"):
            Vectors.open(tmp_path / name)
    with pytest.raises(DataError, match="no such file; write it again with embae extract"):
        Vectors.open(tmp_path / "missing")
    broken = numbers(20)
    broken[7, 2] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        gallery(tmp_path / "new", broken)
