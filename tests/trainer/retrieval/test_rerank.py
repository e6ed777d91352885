"""Re-ranking against the authors' code, written out with full matrices."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from helpers.rank_threads import together

from embae.trainer.retrieval import jaccard, ranking
from embae.trainer.retrieval import neighbours as nearest
from embae.trainer.retrieval.ranking import RankingWork, rank_distances
from embae.trainer.retrieval.rerank import Reranking, rank_again, reranked_distances
from embae.trainer.retrieval.scores import Labels, PerQuery
from embae.trainer.retrieval.work_split import WorkSplit


def authors(q_g: np.ndarray, q_q: np.ndarray, g_g: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    """`re_ranking` of Zhong et al., statement by statement, in float64 and with a stable sort: `(Q, N)`."""
    original = np.concatenate(
        [np.concatenate([q_q, q_g], axis=1), np.concatenate([q_g.T, g_g], axis=1)], axis=0
    )
    original = np.power(original, 2)
    original = np.transpose(1.0 * original / np.max(original, axis=0))
    v = np.zeros_like(original)
    initial = np.argsort(original, kind="stable").astype(np.int32)
    queries, every = len(q_g), len(original)
    for i in range(every):
        forward = initial[i, : k1 + 1]
        backward = initial[forward, : k1 + 1]
        reciprocal = forward[np.where(backward == i)[0]]
        expansion = reciprocal
        for candidate in reciprocal:
            of_candidate = initial[candidate, : int(np.around(k1 / 2)) + 1]
            back = initial[of_candidate, : int(np.around(k1 / 2)) + 1]
            its = of_candidate[np.where(back == candidate)[0]]
            if len(np.intersect1d(its, reciprocal)) > 2 / 3 * len(its):
                expansion = np.append(expansion, its)
        expansion = np.unique(expansion)
        weights = np.exp(-original[i, expansion])
        v[i, expansion] = weights / np.sum(weights)
    original = original[:queries]
    if k2 != 1:
        v = np.stack([np.mean(v[initial[i, :k2]], axis=0) for i in range(every)])
    inverted = [np.where(v[:, i] != 0)[0] for i in range(every)]
    distance = np.zeros_like(original)
    for i in range(queries):
        least = np.zeros(every)
        for column in np.where(v[i] != 0)[0]:
            images = inverted[column]
            least[images] += np.minimum(v[i, column], v[images, column])
        distance[i] = 1 - least / (2 - least)
    return (distance * (1 - weight) + original * weight)[:, queries:]


def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of unit vectors."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return np.sqrt(np.maximum(2 - 2 * a @ b.T, 0))


def people(seed: int, queries: int, images: int, dimensions: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of query and gallery, some eight images a person."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, images // 8), dimensions))
    q, g = (centres[rng.integers(len(centres), size=n)] for n in (queries, images))
    return tuple(x + 0.6 * rng.standard_normal(x.shape) for x in (q, g))  # type: ignore[return-value]


def labels(seed: int, count: int, junk: float = 0.0) -> Labels:
    rng = np.random.default_rng(seed)
    role = np.where(rng.random(count) < junk, "junk", "person")
    return Labels.of(rng.integers(9, size=count), rng.integers(3, size=count), role)


def whole(query: np.ndarray, gallery: np.ndarray, **how: float) -> np.ndarray:
    images = np.arange(len(gallery))
    keys = {"k1": 20, "k2": 6, "weight": 0.3, **how}
    return reranked_distances(query, gallery, images, Reranking(**keys), WorkSplit())(images)(np.arange(len(query)))  # type: ignore[arg-type]


@pytest.mark.parametrize("k1, k2, weight", [(20, 6, 0.3), (7, 3, 0.3), (5, 1, 0.5), (2, 2, 0), (12, 6, 1), (1, 4, 0.1)])
@pytest.mark.parametrize("seed, queries, images", [(0, 12, 90), (1, 30, 150), (2, 1, 40), (3, 60, 30)])
def test_distances_are_the_authors(
    seed: int, queries: int, images: int, k1: int, k2: int, weight: float
) -> None:
    q, g = people(seed, queries, images)
    wanted = authors(between(q, g), between(q, q), between(g, g), k1, k2, weight)
    found = whole(q, g, k1=k1, k2=k2, weight=weight)
    # Squared distances are rounded to 1e-6.
    np.testing.assert_allclose(found, wanted, atol=3e-6)
    order = np.argsort(wanted, axis=1)
    gaps = np.diff(np.take_along_axis(wanted, order, axis=1), axis=1)
    steps = np.diff(np.take_along_axis(found, order, axis=1), axis=1)
    assert (steps[gaps > 6e-6] > 0).all() and ((gaps > 6e-6).mean() > 0.99 or not weight)


def test_it_moves_scores() -> None:
    """Not the plain ranking; and its scores are those of the authors' distances."""
    q, g = people(4, 40, 200)
    known = labels(0, 40), labels(1, 200)
    found = rank_again(q, g, *known)
    wanted = rank_distances(authors(between(q, g), between(q, q), between(g, g), 20, 6, 0.3), *known)
    plain = ranking.rank_embeddings(q, g, *known)
    np.testing.assert_allclose(found.ap, wanted.ap, rtol=1e-12)
    np.testing.assert_array_equal(found.first_nd, wanted.first_nd)
    assert np.abs(found.ap - plain.ap).max() > 0.01


def test_junk_takes_no_part() -> None:
    q, g = people(5, 20, 120)
    known, junk = labels(0, 20), labels(1, 120, junk=0.3)
    kept = ~junk.junk
    some = Labels(junk.pid[kept], junk.camid[kept], junk.identified[kept], junk.junk[kept])
    same(rank_again(q, g, known, junk), rank_again(q, g[kept], known, some))


def same(found: PerQuery, wanted: PerQuery) -> None:
    for name, values in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), values)


def test_blocks_and_ranks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    q, g = people(6, 30, 200)
    g[50:80] = g[10]  # ties
    known = labels(0, 30), labels(1, 200, junk=0.1)
    wanted = rank_again(q, g, *known)
    for name, size in {"_SIMILARITIES": 300, "_ROWS": 17, "_FIRST": 13, "_COLUMNS": 31}.items():
        monkeypatch.setattr(nearest, name, size)
    for name, size in {"_SUMS": 500, "_TERMS": 700, "_ROWS": 17}.items():
        monkeypatch.setattr(jaccard, name, size)
    monkeypatch.setattr(ranking, "MATCHED_BLOCK", 5)
    for chunk, part in ((1, 7), (13, 100), (None, 33)):
        same(rank_again(q, g, *known, work=RankingWork(chunk=chunk, part=part)), wanted)
    for world_size in (2, 3):
        for found in together(world_size, lambda split: rank_again(q, g, *known, work=RankingWork(split))):
            same(found, wanted)


@pytest.mark.parametrize("noise", [0, 1e-7, 1e-5])
def test_a_collapsed_embedding_does_not_score(noise: float) -> None:
    rng = np.random.default_rng(2)
    known = labels(0, 40), labels(1, 603)
    one, person = rng.standard_normal(16), rng.standard_normal((9, 16))  # the noise carries the identity
    found = rank_again(*(one * (1 + noise * person[some.pid]) for some in known), *known).scores()
    assert found.rank10 == 0 and found.mAP < 0.2 and found.mINP < 0.2


def test_memory_does_not_grow_with_the_square() -> None:
    """A process's peak on 15,000 images, whose distances take 0.9 GB in float32."""
    program = (
        "import resource, numpy as np\n"
        "from embae.trainer.retrieval.ranking import RankingWork\n"
        "from embae.trainer.retrieval.rerank import rank_again\n"
        "from embae.trainer.retrieval.scores import Labels\n"
        "from embae.trainer.retrieval.work_split import WorkSplit\n"
        "rng = np.random.default_rng(0)\n"
        "pid = rng.integers(1500, size=15000)\n"
        "x = rng.standard_normal((1500, 16))[pid] + 0.5 * rng.standard_normal((15000, 16))\n"
        "every = Labels(pid, rng.integers(3, size=15000), np.ones(15000, bool), np.zeros(15000, bool))\n"
        "cut = (slice(200), slice(200, None))\n"
        "parts = [Labels(*(column[part] for column in vars(every).values())) for part in cut]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rank_again(x[:200], x[200:], *parts, work=RankingWork(WorkSplit(threads=2)))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert int(done.stdout) < 250e6


@pytest.mark.parametrize("keys, said", [({"k1": 0}, "at least 1"), ({"k2": 0}, "at least 1"), ({"weight": 2}, "λ = 2")])
def test_settings_that_make_no_sense_are_refused(keys: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rank_again(np.ones((1, 2)), np.ones((2, 2)), labels(0, 1), labels(0, 2), Reranking(**keys))  # type: ignore[arg-type]


def test_a_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="gallery image 1 is not finite"):
        rank_again(np.ones((1, 1)), np.array([[1.0], [np.nan]]), labels(0, 1), labels(0, 2))
