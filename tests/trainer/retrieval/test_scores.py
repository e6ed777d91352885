"""Scores against a literal transcription of the protocol, and what must not score."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from subprocess import run
from threading import Barrier

import numpy as np
import pytest

from embae.trainer.retrieval import ranking
from embae.trainer.retrieval.fixed_point import fixed_point
from embae.trainer.retrieval.ranking import RankingWork, rank_distances, rank_embeddings
from embae.trainer.retrieval.scores import Labels, PerQuery, Scores, interval
from embae.trainer.retrieval.work_split import WorkSplit


def score(query: np.ndarray, gallery: np.ndarray, query_labels: Labels, gallery_labels: Labels) -> Scores:
    return rank_embeddings(query, gallery, query_labels, gallery_labels).scores()


def score_distances(distances: np.ndarray, query_labels: Labels, gallery_labels: Labels) -> Scores:
    return rank_distances(distances, query_labels, gallery_labels).scores()


def literally(distances, query_pid, query_camid, query_role, gallery_pid, gallery_camid, gallery_role):
    """The protocol, word by word: one dict of scores a query, None for a query without positives."""
    found = []
    for q in range(len(query_pid)):
        one = {}
        for nd in (False, True):
            ranked = []
            for g in range(len(gallery_pid)):
                same_camera = gallery_camid[g] == query_camid[q]
                same_person = (
                    gallery_role[g] == query_role[q] == "person"
                    and gallery_pid[g] is not None
                    and gallery_pid[g] == query_pid[q]
                )
                if gallery_role[g] == "junk" or (same_person and same_camera) or (nd and same_camera):
                    continue
                ranked.append((distances[q][g], same_person))
            ranked.sort()  # False before True: at the same distance the negative comes first
            ranks = [rank for rank, (_, positive) in enumerate(ranked, start=1) if positive]
            if not ranks:
                one = None
                break
            trapezoid = rectangle = 0.0
            for i, rank in enumerate(ranks, start=1):
                rectangle += i / rank
                trapezoid += (i / rank + (1.0 if rank == 1 else (i - 1) / (rank - 1))) / 2
            end = "-nd" if nd else ""
            for k in (1, 5, 10):
                one[f"Rank-{k}{end}"] = float(any(rank <= k for rank in ranks))
            one[f"mAP{end}"] = trapezoid / len(ranks)
            one[f"mAP{end} (rectangle)"] = rectangle / len(ranks)
            one[f"mINP{end}"] = len(ranks) / ranks[-1]
        found.append(one)
    return found


def columns(rng, count, people, cameras, roles, nulls):
    """Random pids (some None), camids and roles."""
    pid = [None if rng.random() < nulls else int(rng.integers(people)) for _ in range(count)]
    camid = rng.integers(cameras, size=count).tolist()
    return pid, camid, rng.choice(["person", "distractor", "junk"], size=count, p=roles).tolist()


def case(seed):
    """A random small case: the columns of query and gallery."""
    rng = np.random.default_rng(seed)
    people, cameras = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    query = columns(rng, int(rng.integers(1, 9)), people, cameras, [0.9, 0.05, 0.05], 0.1)
    # Pids of junk and distractors are drawn like those of people: only the role may tell them apart.
    gallery = columns(rng, int(rng.integers(1, 60)), people, cameras, [0.7, 0.15, 0.15], 0.1)
    return rng, query, gallery


def assert_literal(result: PerQuery, expected) -> None:
    """Every query's every score, and the means."""
    matched = [one is not None for one in expected]
    assert (result.first > 0).tolist() == matched
    values = result.values()
    for number, one in enumerate(expected):
        for key, value in values.items():
            if one is None:
                assert np.isnan(value[number])
            else:
                assert value[number] == pytest.approx(one[key], abs=1e-12), (number, key)
    if any(matched):
        found = result.scores().to_dict()
        assert found.pop("queries") == len(expected)
        assert found.pop("unmatched") == matched.count(False)
        for key, value in found.items():
            assert value == pytest.approx(np.mean([one[key] for one in expected if one]), abs=1e-12), key


@pytest.mark.parametrize("many", [1, 4, 128], ids=["all by sorting", "both", "all by comparison"])
@pytest.mark.parametrize("kind", ["few integers", "float32", "float64"])
def test_distances_score_like_the_literal_protocol(kind, many, monkeypatch):
    monkeypatch.setattr(ranking, "MANY_POSITIVES", many)
    unmatched = 0
    for seed in range(100):
        rng, query, gallery = case(seed)
        distances = rng.random((len(query[0]), len(gallery[0])))
        if kind == "few integers":
            distances = (distances * 6).astype(np.int32)
        elif kind == "float32":
            distances = distances.astype(np.float32)
        before = distances.copy()
        expected = literally(distances.tolist(), *query, *gallery)
        assert_literal(rank_distances(distances, Labels.of(*query), Labels.of(*gallery)), expected)
        assert (distances == before).all()
        unmatched += expected.count(None)
    assert unmatched > 50  # the cases hold what they are meant to hold


def test_embeddings_score_like_the_literal_protocol():
    for seed in range(100):
        rng, query, gallery = case(seed)
        # Few directions of random length: many embeddings coincide once their length is gone, so ties abound.
        directions = rng.standard_normal((12, 16))
        of_query, of_gallery = rng.integers(12, size=len(query[0])), rng.integers(12, size=len(gallery[0]))
        q, g = directions[of_query], directions[of_gallery]
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        between = np.linalg.norm(unit[:, None] - unit[None], axis=2)
        expected = literally(between[of_query][:, of_gallery].tolist(), *query, *gallery)
        q, g = (x * np.exp(3 * rng.standard_normal((len(x), 1))) for x in (q, g))
        assert_literal(rank_embeddings(q, g, Labels.of(*query), Labels.of(*gallery)), expected)


def test_a_case_by_hand():
    # Ranked: negative, positive, (ignored), (junk), negative on the query's camera, positive. So r = 2, 4; r_nd = 2, 3.
    labels = (
        Labels.of([7], [1]),
        Labels.of(
            [8, 7, 7, -1, 9, 7], [2, 2, 1, 2, 1, 3], ["distractor", "person", "person", "junk", "person", "person"]
        ),
    )
    result = score_distances(np.array([[1.0, 2, 3, 4, 5, 6]]), *labels)
    assert result.mAP_rectangle == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result.mAP == pytest.approx(((1 / 2 + 0 / 1) / 2 + (2 / 4 + 1 / 3) / 2) / 2)
    assert result.mINP == pytest.approx(2 / 4)
    assert (result.rank1, result.rank5, result.rank10, result.rank1_nd) == (0, 1, 1, 0)
    assert result.mAP_nd == pytest.approx(((1 / 2 + 0 / 1) / 2 + (2 / 3 + 1 / 2) / 2) / 2)
    assert result.mAP_nd_rectangle == pytest.approx((1 / 2 + 2 / 3) / 2)
    first = score_distances(np.array([[9.0, 1, 9, 9, 9, 2]]), *labels)
    assert set(first.to_dict().items()) >= {("mAP", 1.0), ("mINP", 1.0), ("Rank-1", 1.0), ("mAP (rectangle)", 1.0)}


def test_the_json_keys_stay():
    found = score_distances(np.zeros((2, 1)), Labels.of([1, 2], [1, 1]), Labels.of([1], [2])).to_dict()
    assert list(found) == [
        *("Rank-1", "Rank-5", "Rank-10", "mAP", "mAP (rectangle)", "mINP"),
        *("Rank-1-nd", "mAP-nd", "mAP-nd (rectangle)", "queries", "unmatched"),
    ]
    assert json.loads(json.dumps(found)) == found
    assert (found["queries"], found["unmatched"]) == (2, 1)


def crowd(queries=40, images=1003, people=20, cameras=3):
    """Labels of a gallery large enough that chance scores near zero."""
    rng = np.random.default_rng(1)
    return (
        Labels.of(rng.integers(people, size=queries), rng.integers(cameras, size=queries)),
        Labels.of(rng.integers(people, size=images), rng.integers(cameras, size=images)),
    )


@pytest.mark.parametrize("noise", [0, 1e-7, 1e-5, 2**-12], ids=["none", "float32", "batch", "fp16"])
@pytest.mark.parametrize("dimensions", [1, 3, 100, 128, 257])
def test_a_collapsed_embedding_does_not_score(dimensions, noise):
    query, gallery = crowd()
    rng = np.random.default_rng(2)
    one = rng.standard_normal(dimensions).astype(np.float32)
    # The noise carries the identity: only ties can keep it from scoring.
    person = rng.standard_normal((20, dimensions)).astype(np.float32)
    q, g = (one * (1 + np.float32(noise) * person[labels.pid]) for labels in (query, gallery))
    found = score(q, g, query, gallery)
    # Every negative comes first: about 950 of them, and some 33 positives.
    assert found.rank10 == 0
    assert found.rank1_nd == 0
    assert max(found.mAP, found.mAP_rectangle, found.mAP_nd) < 0.05
    assert found.mINP < 0.06


def test_zero_vectors_collapse_too():
    query, gallery = crowd()
    found = score(np.zeros((40, 8)), np.zeros((1003, 8)), query, gallery)
    assert found.rank10 == 0
    assert found.mAP < 0.05


def test_products_are_exact():
    # What a plain matmul gets wrong: equal rows at the edge of a block differ in the last bit.
    rng = np.random.default_rng(3)
    for images, dimensions in ((1, 128), (2, 2048), (3, 5), (17, 64), (67, 257), (1003, 129)):
        q, g = (fixed_point(rng.standard_normal((n, dimensions))) for n in (5, images))
        whole_q, whole_g = (np.rint(x * 2**26).astype(np.int64) for x in (q, g))
        exact = whole_q @ whole_g.T  # integers below 2^53
        np.testing.assert_array_equal((q @ g.T) * 2.0**52, exact)
        np.testing.assert_array_equal((g @ q[0]) * 2.0**52, exact[0])


def test_equal_embeddings_tie_whatever_the_shape():
    rng = np.random.default_rng(3)
    for images in (2, 3, 5, 17, 33, 1000, 1003):
        for queries in (1, 2, 5, 64, 67):
            one, q = rng.standard_normal(128).astype(np.float32), rng.standard_normal((queries, 128))
            query = Labels.of(np.arange(queries) % images, np.zeros(queries, dtype=int))
            gallery = Labels.of(np.arange(images), np.ones(images, dtype=int))
            assert (rank_embeddings(q, np.tile(one, (images, 1)), query, gallery).first == images).all()


def test_separated_people_score_fully():
    query, gallery = crowd()
    places = np.random.default_rng(4).standard_normal((20, 64))
    found = score(places[query.pid], 5 * places[gallery.pid], query, gallery)
    assert found.to_dict() == {**dict.fromkeys(found.to_dict(), 1.0), "queries": 40, "unmatched": 0}


@pytest.mark.parametrize("part", [10, 501, 2000])
@pytest.mark.parametrize(("chunk", "threads"), [(1, 2), (7, 1), (39, 3), (1000, 1)])
def test_chunks_parts_and_threads_change_no_bit(chunk, threads, part):
    query, gallery = crowd()
    rng = np.random.default_rng(5)
    q, g = rng.standard_normal((40, 128)).astype(np.float32), rng.standard_normal((1003, 128)).astype(np.float32)
    distances = rng.random((40, 1003))
    for rank, given in ((rank_embeddings, (q, g)), (rank_distances, (distances,))):
        whole = rank(*given, query, gallery)
        parts = rank(*given, query, gallery, RankingWork(WorkSplit(threads=threads), chunk, part))
        assert_same(parts, whole)


def assert_same(found: PerQuery, wanted: PerQuery) -> None:
    """Bit for bit."""
    for name, values in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), values)


@pytest.mark.parametrize("world_size", [2, 3, 7, 60])
def test_ranks_change_no_bit(world_size):
    query, gallery = crowd(images=40 if world_size > 7 else 1003)
    rng = np.random.default_rng(5)
    q, g = rng.standard_normal((40, 16)), rng.standard_normal((len(gallery), 16))
    distances = rng.integers(9, size=(40, len(gallery)))
    for rank, given in ((rank_embeddings, (q, g)), (rank_distances, (distances,))):
        whole = rank(*given, query, gallery)
        for found in together(world_size, lambda split: rank(*given, query, gallery, RankingWork(split))):  # noqa: B023
            assert_same(found, whole)


def together(world_size, run):
    """What a few ranks of `world_size` return, all of which run as threads; see test_evaluate.py for real ones."""
    meet, given = Barrier(world_size), {}

    def work(number):
        def add(array):
            meet.wait()
            given[number] = array
            meet.wait()
            return sum(given.values())

        return run(WorkSplit(number, world_size, add, threads=1))

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(work, range(world_size)))[:3]


def test_blocks_are_what_bounds_memory(monkeypatch):
    query, gallery = crowd()
    shapes = []

    def watched(*given):
        distances = ranking_distances(*given)

        def of(images):
            block = distances(images)

            def measured(queries):
                shapes.append((len(queries), len(images)))
                return block(queries)

            return measured

        return of

    ranking_distances = ranking.squared_distances
    monkeypatch.setattr(ranking, "BLOCK", 4012)
    monkeypatch.setattr(ranking, "squared_distances", watched)
    rank_embeddings(np.ones((40, 2)), np.ones((1003, 2)), query, gallery)
    # First the positives, of few images each, with the queries of these images' identities alone.
    few = -(-np.isin(gallery.pid, query.pid).sum() // 128)
    assert all(queries <= 20 and images <= 128 for queries, images in shapes[:few])
    assert shapes[few:] == [(4, 1003)] * 10
    shapes.clear()
    rank_embeddings(np.ones((40, 2)), np.ones((1003, 2)), query, gallery, RankingWork(part=500))
    assert shapes[few:] == [(8, 500)] * 10 + [(40, 3)]


def test_memory_does_not_grow_with_the_product():
    """A process's peak: 60 million distances take little more than 2 million."""
    program = (
        "import sys, resource, numpy as np\n"
        "from embae.trainer.retrieval.ranking import RankingWork, rank_embeddings\n"
        "from embae.trainer.retrieval.work_split import WorkSplit\n"
        "from embae.trainer.retrieval.scores import Labels\n"
        "queries, images = int(sys.argv[1]), 40000\n"
        "rng = np.random.default_rng(0)\n"
        "labels = [Labels(rng.integers(4000, size=n), rng.integers(3, size=n), np.ones(n, bool), np.zeros(n, bool))"
        " for n in (queries, images)]\n"
        "q, g = (rng.standard_normal((n, 32), dtype=np.float32) for n in (queries, images))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rank_embeddings(q, g, *labels, RankingWork(WorkSplit(threads=2)))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    few, many = (
        int(run([sys.executable, "-c", program, str(queries)], check=True, capture_output=True).stdout)
        for queries in (50, 1500)
    )
    # The formula of `ranking.py`, and the allocator's slack; all distances at once would be 240 MB in float32.
    bound = 8 * (1500 + 2**15) * 32 + 2 * 13 * 2**20 + 40 * 1500 * 10
    assert many < 2 * bound < 90e6
    assert many < few + 30e6


def test_parts_of_ranks_go_together():
    query, gallery = crowd()
    distances = np.random.default_rng(6).random((40, 1003))
    parts = [
        rank_distances(
            distances[part],
            Labels.of(query.pid[part], query.camid[part]),
            gallery,
        )
        for part in (slice(0, 13), slice(13, 13), slice(13, 40))
    ]
    assert PerQuery.concatenate(parts).scores() == score_distances(distances, query, gallery)


@pytest.mark.parametrize("where", ["query", "gallery", "junk"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_refused(where, value):
    query = Labels.of([1, 2], [1, 1])
    gallery = Labels.of([1, 2, 0], [2, 2, 2], ["person", "person", "junk"])
    q, g = np.ones((2, 4)), np.ones((3, 4))
    (q if where == "query" else g)[2 if where == "junk" else 1, 3] = value
    named = "query image 1" if where == "query" else f"gallery image {2 if where == 'junk' else 1}"
    with pytest.raises(ValueError, match=f"{named} is not finite"):
        score(q, g, query, gallery)


def test_a_nan_distance_is_refused_by_name():
    distances = np.ones((4, 3))
    distances[2, 1] = np.nan
    with pytest.raises(ValueError, match="query 2 to gallery image 1 is NaN"):
        rank_distances(distances, Labels.of([1] * 4, [1] * 4), Labels.of([1] * 3, [2] * 3), RankingWork(chunk=1))


def test_an_infinite_distance_ranks_last_and_ties():
    labels = Labels.of([1], [1]), Labels.of([1, 2, 3], [2, 2, 2])
    assert score_distances(np.array([[np.inf, np.inf, 1]]), *labels).mINP == pytest.approx(1 / 3)


def test_distances_keep_their_precision():
    labels = Labels.of([1], [1]), Labels.of([1, 2], [2, 2])
    assert score_distances(np.array([[1, 1 + 1e-12]]), *labels).rank1 == 1
    assert score_distances(np.array([[1 + 1e-12, 1]]), *labels).rank1 == 0


def test_a_zero_vector_is_one_away_from_unit_vectors():
    labels = Labels.of([1], [1]), Labels.of([1, 2], [2, 2])
    for cosine, hit in ((0.4, 1), (0.6, 0)):  # of the negative: |q − g|² = 2 − 2 cos
        g = np.array([[0, 0], [cosine, np.sqrt(1 - cosine**2)]])
        assert score(np.array([[1, 0]]), g, *labels).rank1 == hit


@pytest.mark.filterwarnings("error")
def test_huge_and_tiny_embeddings_keep_their_direction():
    labels = Labels.of([1, 2], [1, 1]), Labels.of([1, 2], [2, 2])
    assert score(np.diag([1e300, 1e-300]), np.diag([1e-310, 1e308]), *labels).rank1 == 1


def test_nothing_matched_is_an_error_not_a_score():
    with pytest.raises(ValueError, match="none of 1 queries"):
        score_distances(np.ones((1, 2)), Labels.of([1], [1]), Labels.of([1, 2], [1, 2]))
    with pytest.raises(ValueError, match="none of 1 queries"):
        score(np.ones((1, 2)), np.ones((1, 2)), Labels.of([1], [1]), Labels.of([1], [2], ["junk"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_distances(np.ones((2, 2)), Labels.of([1], [1]), Labels.of([1, 2], [1, 2])), "2 query images"),
        (lambda: score_distances(np.ones((1, 3)), Labels.of([1], [1]), Labels.of([1, 2], [1, 2])), "3 gallery images"),
        (lambda: score_distances(np.ones(2), Labels.of([1], [1]), Labels.of([1, 2], [1, 2])), r"\(Q, N\)"),
        (lambda: score(np.ones((1, 3)), np.ones((1, 2)), Labels.of([1], [1]), Labels.of([1], [2])), r"\(N, D\)"),
        (lambda: Labels.of([1, 2], [1]), "2 pids, 1 camids"),
        (lambda: Labels.of([1], [1], ["persn"]), "unknown role 'persn'"),
        (lambda: Labels.of([1.5], [1]), "pid must be one integer"),
        (lambda: Labels.of([1], [float("nan")]), "camid must be one integer"),
    ],
)
def test_input_that_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_interval_covers_the_mean_and_is_drawn_from_the_seed():
    rng = np.random.default_rng(7)
    query = Labels.of(rng.integers(100, size=400), np.ones(400, dtype=int))
    values = rng.random(400)
    low, high = interval(values, query)
    assert low < values.mean() < high
    # Independent queries: 95 % of a normal distribution with the standard error of the mean.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert interval(values, query) == (low, high)
    assert interval(values, query, seed=1) != (low, high)
    assert interval(values, query, seed=1, resamples=50) != interval(values, query, seed=1)


def test_interval_resamples_identities_not_queries():
    # 20 identities of 50 queries each, all queries of one alike: the spread is that of 20 draws, not of 1,000.
    person = np.repeat(np.arange(20), 50)
    low, high = interval((person % 2).astype(float), Labels.of(person, np.ones(1000, dtype=int)))
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(20), rel=0.2)


def test_interval_takes_all_queries_of_an_identity():
    # 100 identities of 9 queries that hit, 100 of one query that misses: the mean is over queries, 0.9.
    person = np.concatenate([np.repeat(np.arange(100), 9), np.arange(100, 200)])
    low, high = interval((person < 100).astype(float), Labels.of(person, np.ones(1000, dtype=int)))
    assert 0.85 < low < 0.9 < high < 0.95


def test_interval_leaves_unmatched_queries_out():
    values = np.array([1.0, 1.0, np.nan, np.nan])
    assert interval(values, Labels.of([1, 2, 3, None], [1] * 4)) == (1, 1)
    with pytest.raises(ValueError, match="nothing to resample"):
        interval(np.full(2, np.nan), Labels.of([1, 2], [1, 1]))
    with pytest.raises(ValueError, match="4 values for 2 queries"):
        interval(values, Labels.of([1, 2], [1, 1]))


def test_imports_without_torch():
    check = "import sys, embae.trainer.retrieval.ranking; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert run([sys.executable, "-c", check]).returncode == 0
