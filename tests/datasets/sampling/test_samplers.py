"""The batch plan: which images, in which batch, whatever the number of ranks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.columns import Columns
from embae.datasets.index.records import Record
from embae.datasets.index.writer import write_index
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Work
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.sampler import Sampler, share
from embae.datasets.sampling.sequential_sampler import SequentialSampler
from embae.datasets.sampling.shuffled_sampler import ShuffledSampler
from embae.datasets.sampling.turns import turn
from embae.datasets.sampling.view import View

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


def sampler(view: View, P: int = 5, K: int = 4, seed: int = 1, stage: str = "s", **options: object) -> PKSampler:
    return PKSampler(view, PKOptions(P, K, **options), seed=seed, stage=stage)  # type: ignore[arg-type]


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
    plan = PKSampler(two, PKOptions(P={"a": 6, "b": 3}, K=2), seed=1, stage="s")
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


@pytest.fixture
def sharded(tmp_path: Path) -> Callable[..., View]:
    """``sharded((identities of shard 0, …), …)``: a dataset each, of four images an identity, in such shards."""
    def make(*datasets: Sequence[int]) -> View:
        indexes = []
        for number, sizes in enumerate(datasets):
            pid = np.repeat(np.arange(sum(sizes)), 4)
            shard = np.repeat(np.arange(len(sizes)), 4 * np.array(sizes)).astype(np.int32)
            within = np.arange(len(pid)) - np.searchsorted(shard, shard)
            names = [f"train-{at:06d}.tar" for at in range(len(sizes))]
            (folder := tmp_path / f"s{number}").mkdir()
            for name, identities in zip(names, sizes, strict=True):
                with (folder / name).open("wb") as file:
                    file.truncate(40 * identities)
            rows, one = np.arange(len(pid)), np.ones(len(pid), np.int32)
            write_index(folder, f"s{number}", Columns(
                keys=pa.array([f"{row:07d}" for row in rows]), split=np.zeros(len(pid), np.int8), pid=pid,
                labelled=np.ones(len(pid), np.bool_), camid=np.zeros(len(pid), np.int32),
                role=np.zeros(len(pid), np.int8), shard=shard, offset=10 * within, size=10 * one,
                crc32=rows.astype(np.uint32), height=8 * one, width=4 * one, shards=names), source={})
            indexes.append(Index.open(folder))
        return View(indexes, "train")
    return make


def shards_of(plan: PKSampler, steps: range) -> list[set[int]]:
    return [set(plan.view.shards(plan.plan(step)).tolist()) for step in steps]


STORED = {"turns": "aad5172351435ee3", "mixed": "79df4a2d66b3013a", "shuffled": "d53cb1c7509d8083"}


def test_plans_without_a_window_are_what_they_were(two: View) -> None:
    """Of fifty steps; taken before there were windows. Runs that go on rely on it."""
    plans: dict[str, Sampler] = {"turns": sampler(two), "mixed": sampler(two, mix=True),
                                 "shuffled": ShuffledSampler(two, batch=19, seed=1, stage="s")}
    rows = {name: np.concatenate([plan.plan(step) for step in range(50)]) for name, plan in plans.items()}
    assert {name: hashlib.sha256(found.tobytes()).hexdigest()[:16] for name, found in rows.items()} == STORED


@pytest.mark.parametrize("window", [1, 3, 20, 99])
def test_a_pass_through_a_window_takes_each_identity_once(sharded: Callable[..., View], window: int) -> None:
    view = sharded([9] * 19 + [2])  # 173 identities: 24 batches of 7, and 5 left out
    plan, left, orders = sampler(view, P=7, K=2, window=window), [], []
    for number in range(6):
        seen = [pid for step in range(24) for pid in view.identity(plan.plan(24 * number + step))[::2].tolist()]
        assert len(seen) == len(set(seen)) == 168
        left.append(frozenset(range(173)) - set(seen))
        orders.append(seen)
    assert all(a != b for a, b in pairwise(orders)) and all(not a & b for a, b in pairwise(left))
    fresh = sampler(view, P=7, K=2, window=window)
    for step in (100, 3, 99, 24, 23):  # any step at once, whatever was asked before
        assert (np.concatenate(parts(fresh, step, 3)) == plan.plan(step)).all()


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize("sizes", ["alike", "different"])
def test_few_shards_come_up_at_a_time(sharded: Callable[..., View], window: int, sizes: str) -> None:
    """Of w shards at each place of the pass, and of one more for each shard's worth of identities that goes by."""
    drawn = np.random.default_rng(0).integers(10, 70, 64)
    view = sharded([40] * 64 if sizes == "alike" else drawn.tolist())
    plan = sampler(view, P=10, K=2, window=window)
    steps = len(view.identities[0]) // 10
    for number in range(2):
        found = shards_of(plan, range(number * steps, (number + 1) * steps))
        assert max(map(len, found)) <= window + 2
        for span in (10, 40):
            stretches = [set.union(*found[at:at + span]) for at in range(0, steps - span)]
            # The shortest stretch that could be: identities are drawn, and shards hold fewer here and there.
            assert max(map(len, stretches)) <= window + 1 + np.ceil(10 * span / 40) * (1.5 if sizes == "alike" else 2.5)
        under_way = [{step for step, shards in enumerate(found) if shard in shards} for shard in range(64)]
        both_ends = sum(bool({0, 1} & steps_of) and bool({steps - 1, steps - 2} & steps_of) for steps_of in under_way)
        assert both_ends <= window + 1
    without = shards_of(sampler(view, P=10, K=2), range(steps))
    assert np.mean([len(shards) for shards in without]) > 9


def test_a_window_of_all_shards_mixes_them_all(sharded: Callable[..., View]) -> None:
    """How often two identities of one batch are of one shard: as by chance, 39 / 2559; with a window far oftener."""
    view = sharded([40] * 64)
    shard = view.shards(view.identities[0][:, 0])

    def together(window: int | None) -> float:
        plan = sampler(view, P=10, K=2, window=window)
        batches = [shard[view.identity(plan.plan(step))[::2]] for step in range(1024)]
        return float(np.mean([(batch[:, None] == batch).sum() - 10 for batch in batches])) / 90

    chance = 39 / 2559
    assert abs(together(None) / chance - 1) < 0.15 and abs(together(64) / chance - 1) < 0.15
    assert abs(together(1000) / chance - 1) < 0.15
    assert together(4) > 8 * chance


def test_each_dataset_has_a_window_of_its_own(sharded: Callable[..., View]) -> None:
    view = sharded([20] * 12, [20] * 8)
    plan = sampler(view, P=6, K=2, window=2)
    for step in range(60):
        assert len(set(view.shards(plan.plan(step)).tolist())) <= 4
        assert len(set(view.locate(plan.plan(step))[0].tolist())) == 1
    mixed = sampler(view, P=6, K=2, window=2, mix=True)
    found = [set(view.shards(mixed.plan(step)).tolist()) for step in range(60)]
    assert max(map(len, found)) <= 4 and set.union(*found) == set(range(20))


def test_the_next_pass_is_at_hand_while_one_ends(sharded: Callable[..., View], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads ahead is in the next pass already: neither may make the other draw its pass again at each step."""
    view = sharded([40] * 16)
    plan, sorts, argsort = sampler(view, P=10, K=2, window=3), [], np.argsort
    monkeypatch.setattr(np, "argsort", lambda *given, **more: sorts.append(1) or argsort(*given, **more))
    for step in range(0, 192):
        plan.plan(step), plan.plan(step + 30)
    assert len(sorts) == 4  # passes of 64 steps


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
