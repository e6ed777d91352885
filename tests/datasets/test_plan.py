"""The batch plan: which images, in which batch, whatever the number of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from embae.datasets.augment import Augment, ImageSpec
from embae.datasets.batch import Work
from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.plan import PKSampler, Sampler, SequentialSampler, ShuffledSampler, share, turn
from embae.datasets.records import Record
from embae.datasets.view import View

Tabled = Callable[..., Index]


def people(identities: int, images: int = 6, cameras: int = 3) -> list[tuple[int, int]]:
    return [(pid, image % cameras) for pid in range(identities) for image in range(images)]


def parts(sampler: Sampler, step: int, world_size: int, accumulate: int = 1) -> list[np.ndarray]:
    """The rows that every rank reads for a step, in the order of ranks and parts."""
    found = []
    for rank in range(world_size):
        work = Work(sampler, ImageSpec(64, 32), Augment(), 0, "s", step, step + 1, rank, world_size, accumulate)
        assert len(work) == accumulate
        for part in range(accumulate):
            batch, draws = work.part(part)
            assert (batch.plan == sampler.plan(step)).all() and batch.step == step
            assert (batch.plan[batch.slots] == batch.rows).all() and len(draws.flip) == len(batch.rows)
            assert len(batch.rows) <= work.largest
            found.append(batch.rows)
    return found


@pytest.fixture
def two(tabled: Tabled) -> View:
    """12 identities × 6 images and 9 × 4 images."""
    return View([tabled("a", people(12)), tabled("b", people(9, 4, 2))], "train")


def sampler(view: View, P: int = 5, K: int = 4, **options: object) -> PKSampler:
    return PKSampler(view, P=P, K=K, **{"seed": 1, "stage": "s", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("rows, count", [(72, 1), (72, 5), (18, 8), (7, 3), (3, 8)])
def test_shares_are_the_whole_and_differ_by_one(rows: int, count: int) -> None:
    slices = [share(rows, part, count) for part in range(count)]
    assert [row for found in slices for row in range(rows)[found]] == list(range(rows))
    sizes = [found.stop - found.start for found in slices]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size, accumulate", [(1, 1), (2, 1), (3, 1), (8, 1), (3, 2), (1, 4)])
def test_batches_do_not_depend_on_world_size(two: View, world_size: int, accumulate: int) -> None:
    for plan in (sampler(two), ShuffledSampler(two, batch=19, seed=1, stage="s")):
        for step in (0, 1, 7):
            found = parts(plan, step, world_size, accumulate)
            assert (np.concatenate(found) == plan.plan(step)).all()
            assert max(map(len, found)) - min(map(len, found)) <= 1


def test_a_batch_is_of_one_dataset_and_holds_k_of_p(two: View) -> None:
    plan, seen = sampler(two), Counter[int]()
    for step in range(30):
        rows = plan.plan(step)
        assert len(set(two.locate(rows)[0])) == 1
        assert sorted(Counter(two.identity(rows).tolist()).values()) == [4] * 5
        assert len(set(rows.tolist())) == 20
        seen[int(two.locate(rows)[0][0])] += 1
    assert seen == {0: 20, 1: 10}  # 72 and 36 images


def test_no_identity_twice_in_a_pass_and_others_left_out_each_time(tabled: Tabled) -> None:
    view = View([tabled("a", people(13))], "train")
    plan, left = sampler(view, P=5, K=2), []
    for number in range(13):
        seen = [pid for step in (2 * number, 2 * number + 1) for pid in set(view.identity(plan.plan(step)).tolist())]
        assert len(seen) == len(set(seen)) == 10
        left.append(frozenset(range(13)) - set(seen))
    assert all(len(found) == 3 for found in left)
    assert all(a != b for a, b in pairwise(left))
    assert set(Counter(pid for found in left for pid in found).values()) == {3}  # all as often


def test_passes_are_shuffled_afresh(tabled: Tabled) -> None:
    view = View([tabled("a", people(8))], "train")
    plan = sampler(view, P=8, K=1)
    orders = {tuple(view.identity(plan.plan(step)).tolist()) for step in range(20)}
    assert len(orders) == 20


def test_images_are_spread_over_cameras(tabled: Tabled) -> None:
    cameras = [[0] * 9 + [1], [0] * 5 + [1] * 5, [0] * 4 + [1] * 4 + [2] * 4, [0] * 6, [0, 1, 2, 3, 4, 5]]
    view = View([tabled("a", [(pid, camid) for pid, found in enumerate(cameras) for camid in found])], "train")
    plan, firsts = sampler(view, P=5, K=4), set()
    for step in range(40):
        rows = plan.plan(step).reshape(5, 4)
        for own in rows:
            assert len(set(own.tolist())) == 4
            counts = Counter(view.column("camid", own).tolist())
            match view.column("pid", own)[0]:
                case 0:
                    assert counts == {0: 3, 1: 1}  # all that camera 1 has
                case 1:
                    assert counts == {0: 2, 1: 2}
                case 2:
                    assert sorted(counts.values()) == [1, 1, 2]
                case 4:
                    assert sorted(counts.values()) == [1, 1, 1, 1]
                    firsts |= set(counts)
    assert firsts == set(range(6))


def test_images_repeat_only_where_there_are_too_few(tabled: Tabled) -> None:
    view = View([tabled("a", [(0, 0), (1, 0), (1, 1), (1, 1), (2, 0), (2, 0), (2, 0), (2, 0)])], "train")
    plan, seen = sampler(view, P=3, K=4), set()
    for step in range(30):
        for own in plan.plan(step).reshape(3, 4):
            repeats = sorted(Counter(own.tolist()).values())
            assert repeats == {0: [4], 1: [1, 1, 2], 2: [1, 1, 1, 1]}[int(view.column("pid", own)[0])]
        seen |= set(plan.plan(step).tolist())
    assert seen == set(range(8))


def test_every_image_comes_up_about_as_often(tabled: Tabled) -> None:
    view = View([tabled("a", people(4, 8, 1))], "train")
    plan = sampler(view, P=4, K=2)
    counts = np.bincount(np.concatenate([plan.plan(step) for step in range(400)]), minlength=32)
    assert abs(counts - 100).max() < 40  # 4.6 standard deviations


def test_only_persons_with_an_identity(tabled: Tabled) -> None:
    rows = [*people(3), (1, 5, "junk"), (1, 5, "junk"), *[(7, 5, "distractor")] * 9, *[(None, 5)] * 9]
    view = View([tabled("a", rows)], "train")
    plan = sampler(view, P=3)
    assert plan.images == 18
    for step in range(20):
        assert 5 not in view.column("camid", plan.plan(step))


WEIGHTS = [(1, 1), (3, 1), (2, 5), (0.9, 0.1), (1, 1, 1), (5, 3, 2), (7, 11, 13), (6, 2, 2), (1, 1, 1, 1),
           (17, 1, 1, 1), (3, 5, 7, 9), (1, 1, 1, 1, 1), (12936, 16522, 7365, 3884, 32621), (20, 1, 1, 1, 1),
           (0.31, 0.27, 0.23, 0.11, 0.08)]


def walk(weights: Sequence[float], steps: int) -> np.ndarray:
    return np.array([turn(step, weights)[0] for step in range(steps)])


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_turns_are_in_proportion_all_along(weights: Sequence[float]) -> None:
    shares = np.array(weights) / sum(weights)
    taken = np.cumsum(np.eye(len(weights))[walk(weights, 1500)], 0)
    assert abs(taken - np.arange(1, 1501)[:, None] * shares).max() <= 1 + 1e-9


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_turns_come_in_runs_only_where_they_must(weights: Sequence[float]) -> None:
    turns = walk(weights, 1500)
    changes = np.flatnonzero(np.diff(turns, prepend=-1, append=-1))
    longest = {int(turns[at]): 0 for at in changes[:-1]}
    for at, run in zip(changes, np.diff(changes), strict=False):
        longest[int(turns[at])] = max(longest[int(turns[at])], int(run))
    for dataset, found in longest.items():
        rest = 1 - weights[dataset] / sum(weights)
        assert found <= max(2, np.ceil(1 / rest)), (dataset, found)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_equal_weights_go_round(count: int) -> None:
    turns = walk([7] * count, 60).reshape(-1, count)
    assert (turns == turns[0]).all() and set(turns[0]) == set(range(count))


@pytest.mark.parametrize("weights", [(1, 1), (5, 3, 2), (12936, 16522, 7365, 3884, 32621)], ids=str)
def test_turns_are_numbered_without_a_gap(weights: Sequence[float]) -> None:
    counts = [0] * len(weights)
    for step in range(1000):
        dataset, number = turn(step, weights)
        assert number == counts[dataset]
        counts[dataset] += 1


def test_far_turns_go_on_like_near_ones() -> None:
    """These weights repeat after 10 steps, so that walking 10 million steps can be left out."""
    weights, far = (5, 3, 2), 10_000_000
    taken = {0: far // 2, 1: far * 3 // 10, 2: far // 5}
    for step in range(200):
        dataset, number = turn(step, weights)
        assert turn(far + step, weights) == (dataset, number + taken[dataset])


def test_weights_set_the_share_of_batches(two: View) -> None:
    plan = sampler(two, weights={"b": 3, "a": 1})
    numbers = [int(two.locate(plan.plan(step))[0][0]) for step in range(40)]
    assert Counter(numbers) == {1: 30, 0: 10}


def test_any_step_at_once(two: View) -> None:
    for make in (lambda: sampler(two), lambda: ShuffledSampler(two, batch=10, seed=1, stage="s")):
        one, steps = make(), list(range(40))
        walked = [one.plan(step) for step in steps]
        for step in reversed(steps):
            assert (make().plan(step) == walked[step]).all()
            assert (one.plan(step) == walked[step]).all()


@pytest.mark.parametrize("other", [{"seed": 2}, {"stage": "t"}])
def test_another_seed_or_stage_draws_others(two: View, other: dict[str, object]) -> None:
    assert (sampler(two).plan(3) == sampler(two).plan(3)).all()
    assert set(sampler(two).plan(3).tolist()) != set(sampler(two, **other).plan(3).tolist())
    shuffled = [ShuffledSampler(two, batch=20, **{"seed": 1, "stage": "s", **keys})  # type: ignore[arg-type]
                for keys in ({}, other)]
    assert set(shuffled[0].plan(3).tolist()) != set(shuffled[1].plan(3).tolist())


def test_p_for_each_dataset(two: View) -> None:
    plan = PKSampler(two, P={"a": 6, "b": 3}, K=2, seed=1, stage="s")
    steps = {int(two.locate(plan.plan(step))[0][0]): step for step in range(10)}
    assert {dataset: len(plan.plan(step)) for dataset, step in steps.items()} == {0: 12, 1: 6}
    assert plan.batch == 12
    assert [len(rows) for rows in parts(plan, steps[1], 5)] == [1, 1, 1, 1, 2]


def test_mixed_batches_pool_the_identities(two: View) -> None:
    plan = sampler(two, P=7, K=2, mix=True)
    assert plan.images == len(two)
    found = [two.identity(plan.plan(step)) for step in range(3)]
    assert sorted(np.concatenate(found).tolist()) == sorted([*range(21)] * 2)  # a pass over all 21, without a second
    assert any(len(set(two.locate(plan.plan(step))[0])) == 2 for step in range(3))


def test_too_few_identities_names_the_dataset(two: View) -> None:
    with pytest.raises(DataError, match="dataset b: 9 identities, but P is 10"):
        sampler(two, P=10)
    sampler(two, P=9)


def test_no_labels_names_the_dataset(tabled: Tabled) -> None:
    view = View([tabled("a", people(6)), tabled("blank", [(None, 0)] * 20)], "train")
    with pytest.raises(DataError, match="dataset blank: no image has a pid"):
        sampler(view)


def test_fewer_images_than_a_batch(two: View) -> None:
    with pytest.raises(DataError, match="a, b: 108 images, but the global batch is 109"):
        ShuffledSampler(two, batch=109, seed=1, stage="s")
    assert sorted(ShuffledSampler(two, batch=108, seed=1, stage="s").plan(5)) == list(range(108))


def test_shuffled_takes_every_image_at_most_once_a_pass(two: View) -> None:
    plan = ShuffledSampler(two, batch=25, seed=1, stage="s")
    passes = [np.concatenate([plan.plan(4 * number + step) for step in range(4)]) for number in range(3)]
    assert all(len(set(rows.tolist())) == 100 for rows in passes)
    assert all((a != b).mean() > 0.9 for a, b in pairwise(passes))


def test_shuffled_batches_do_not_depend_on_labels_or_order(
    photographs: list[Record], originals: Index, shard: Callable[..., Index]
) -> None:
    """The last photograph is there twice, under two keys: both orders of equal images are the same sequence."""
    blank = [Record(f"other{number:02d}", "train", None, record.camid, record.image)
             for number, record in enumerate(reversed(photographs))]
    turned = [Record(record.key, "train", 100 - (record.pid or 0), record.camid, record.image)
              for record in photographs]
    sequences = []
    for index in (originals, shard(blank), shard(turned)):
        plan = ShuffledSampler(View([index], "train"), batch=10, seed=1, stage="s")
        rows = np.concatenate([plan.plan(step) for step in range(9)])
        sequences.append((rows.tolist(), index.crc32[rows].tolist()))
    assert sequences[0][1] == sequences[1][1] == sequences[2][1]
    assert sequences[0][0] != sequences[1][0]  # the rows were indeed in another order


def test_sequential_takes_a_stretch_in_order(two: View) -> None:
    plan = SequentialSampler(two, batch=4, rows=np.arange(3, 13))
    assert [plan.plan(step).tolist() for step in range(len(plan))] == [[3, 4, 5, 6], [7, 8, 9, 10], [11, 12]]
    assert len(SequentialSampler(two, batch=4, rows=np.arange(3, 3))) == 0
