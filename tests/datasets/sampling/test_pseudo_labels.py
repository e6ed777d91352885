"""Images that bear pseudo-labels: read by them alone, whatever the index knows of their pids."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import Record
from embae.datasets.sampling.label_agreement import measure_agreement
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.pseudo_labels import CARD, LABELS, read_labels, write_labels
from embae.datasets.sampling.relabelled_view import RelabelledView
from embae.datasets.sampling.view import PERSON, View

Tabled = Callable[..., Index]
Shard = Callable[..., Index]


def clusters_of(index: Index, out: Sequence[str] = ()) -> np.ndarray:
    """Pseudo-labels of the photographs, by their keys alone: five clusters, and images that are left out."""
    keys = [index.key(row) for row in range(index.rows("train").start, index.rows("train").stop)]
    return np.array([-1 if key in out else int(key[1:]) * 7 % 5 for key in keys])


def keys(view: View, rows: np.ndarray) -> list[str]:
    index, local = view.indexes[0], view.locate(rows)[1]
    return [index.key(int(row)) for row in local]


OUT = ("i03", "i17", "i28")


@pytest.fixture
def relabelled(originals: Index) -> RelabelledView:
    return RelabelledView([originals], "train", clusters_of(originals, OUT))


def test_identities_lie_side_by_side_in_the_order_of_their_labels(originals: Index, relabelled: RelabelledView) -> None:
    wanted = clusters_of(originals, OUT)
    (table,) = relabelled.identities
    rows = np.arange(len(relabelled))
    pid = relabelled.column("pid", rows)
    assert len(relabelled) == 29 and (np.diff(pid) >= 0).all()
    assert table.tolist() == [[np.flatnonzero(pid == label)[0], np.flatnonzero(pid == label)[-1] + 1,
                               np.count_nonzero(wanted == label)] for label in range(5)]
    assert relabelled.identity(rows).tolist() == pid.tolist()
    plain = View([originals], "train")
    by_key = dict(zip(keys(plain, np.arange(32)), wanted.tolist(), strict=True))
    assert [by_key[key] for key in keys(relabelled, rows)] == pid.tolist()


def test_labels_need_not_be_contiguous(originals: Index) -> None:
    labels = np.full(32, -1)
    labels[[2, 9, 30]] = [40, 7, 40]
    view = RelabelledView([originals], "train", labels)
    assert view.identities[0].tolist() == [[0, 1, 1], [1, 3, 2]]
    assert view.identity(np.arange(3)).tolist() == [0, 1, 1]
    assert view.column("pid", np.arange(3)).tolist() == [7, 40, 40]


def test_images_that_are_left_out_are_in_no_row_and_no_batch(relabelled: RelabelledView) -> None:
    every = keys(relabelled, np.arange(len(relabelled)))
    assert len(set(every)) == 29 and not set(every) & set(OUT)
    plan = PKSampler(relabelled, PKOptions(P=2, K=4), seed=0, stage="s")
    assert plan.images == 29
    drawn = {key for step in range(200) for key in keys(relabelled, plan.plan(step))}
    assert drawn == set(every)  # and all others come


def test_batches_hold_k_of_p_clusters_and_no_cluster_twice_in_a_pass(relabelled: RelabelledView) -> None:
    plan = PKSampler(relabelled, PKOptions(P=2, K=4), seed=3, stage="s")
    for number in range(10):
        found = [relabelled.identity(plan.plan(step)) for step in (2 * number, 2 * number + 1)]
        assert all(sorted(Counter(rows.tolist()).values()) == [4, 4] for rows in found)
        assert len(set(np.concatenate(found).tolist())) == 4


def test_columns_other_than_those_of_identity_are_the_images_own(originals: Index, relabelled: RelabelledView) -> None:
    rows = np.array([5, 0, 28, 11])
    local = relabelled.locate(rows)[1]
    for name in ("camid", "offset", "size", "crc32"):
        assert relabelled.column(name, rows).tolist() == getattr(originals, name)[local].tolist()
    content = View([originals], "train").fingerprints()
    assert relabelled.fingerprints()[rows].tolist() == content[local].tolist()
    assert relabelled.column("labelled", rows).all()
    assert (relabelled.column("role", rows) == PERSON).all()


def test_cameras_are_those_of_the_images_that_are_left(tabled: Tabled) -> None:
    index = tabled("set", [(pid, pid % 3) for pid in range(9)])
    labels = np.where(index.camid == 1, -1, 0)
    assert RelabelledView([index], "train", labels).cameras() == [("set", 0), ("set", 2)]
    assert View([index], "train").cameras() == [("set", 0), ("set", 1), ("set", 2)]


def test_what_the_index_says_of_roles_plays_no_part(tabled: Tabled) -> None:
    index = tabled("set", [(0, 0, "distractor"), (0, 1, "junk"), (1, 0), (1, 1)])
    view = RelabelledView([index], "train", np.array([0, 0, 0, 1]))
    assert view.identities[0][:, 2].tolist() == [3, 1]
    plan = PKSampler(view, PKOptions(P=2, K=3), seed=0, stage="s")
    assert {int(row) for step in range(20) for row in plan.plan(step)} == {0, 1, 2, 3}


@pytest.mark.parametrize("pids", ["nulled", "others", "half"])
def test_batches_do_not_depend_on_the_pids_of_the_index(
    photographs: list[Record], originals: Index, shard: Shard, pids: str
) -> None:
    """Other pids are another order of the index; the same images bear the same labels in the same batches."""
    change = {"nulled": lambda number: None, "others": lambda number: number * 11 % 13,
              "half": lambda number: number if number % 2 else None}[pids]
    other = shard([replace(record, pid=change(number)) for number, record in enumerate(photographs)])
    assert other.keys.to_pylist() != originals.keys.to_pylist()
    found = []
    for index in (originals, other):
        view = RelabelledView([index], "train", clusters_of(index, OUT))
        plan = PKSampler(view, PKOptions(P=3, K=4), seed=1, stage="s")
        batches = [plan.plan(step) for step in range(12)]
        # By content, since three of the files are the same photograph, two of them on one camera.
        content = view.fingerprints()
        found.append([(content[rows].tolist(), view.identity(rows).tolist(), view.column("pid", rows).tolist())
                      for rows in batches])
    assert found[0] == found[1]


def test_other_datasets_stand_before_it_as_they_are(originals: Index, tabled: Tabled) -> None:
    one = tabled("one", [(4, 0), (4, 1), (7, 0, "junk"), (7, 2), (None, 1)])
    two = tabled("two", [(4, 5), (5, 5)])
    labels = clusters_of(originals, OUT)
    view, before = RelabelledView([one, two, originals], "train", labels), View([one, two], "train")
    alone = RelabelledView([originals], "train", labels)
    rows = np.arange(len(view))
    assert len(view) == 7 + 29 and view.names == ["one", "two", "set"]
    assert [table.tolist() for table in view.identities] == [
        [[0, 2, 2], [2, 4, 1]], [[5, 6, 1], [6, 7, 1]], (alone.identities[0] + [7, 7, 0]).tolist()]
    for name in ("pid", "labelled", "role", "camid", "crc32"):
        assert view.column(name, rows).tolist() == [*before.column(name, rows[:7]), *alone.column(name, rows[:29])]
    mixed = np.array([30, 1, 6, 8])
    assert view.column("pid", mixed).tolist() == view.column("pid", rows)[mixed].tolist()
    assert view.fingerprints().tolist() == [*before.fingerprints(), *alone.fingerprints()]
    assert view.cameras() == sorted([*before.cameras(), *alone.cameras()])
    plan = PKSampler(view, PKOptions(P=2, K=2), seed=0, stage="s")
    batches = [view.locate(plan.plan(step))[0] for step in range(40)]
    assert all(len(set(batch.tolist())) == 1 for batch in batches) and {int(batch[0]) for batch in batches} == {0, 1, 2}


def test_a_window_is_for_the_other_datasets(originals: Index, tabled: Tabled) -> None:
    """How the target is sharded depends on its pids, so that it may play no part."""
    one = tabled("one", [(pid, camid) for pid in range(40) for camid in range(2)])
    view = RelabelledView([one, originals], "train", clusters_of(originals, OUT))
    plans = [PKSampler(view, PKOptions(P=2, K=2, window=window), seed=0, stage="s") for window in (None, 1)]
    batches = [[plan.plan(step) for step in range(60)] for plan in plans]
    for plain, windowed in zip(*batches, strict=True):
        assert plain.tolist() == windowed.tolist() or plain[0] < 80
    assert any(plain.tolist() != windowed.tolist() for plain, windowed in zip(*batches, strict=True))


def test_every_image_left_out_is_an_error(originals: Index) -> None:
    with pytest.raises(DataError, match="left out every image"):
        RelabelledView([originals], "train", np.full(32, -1))


def test_labels_come_back_as_they_were_written(originals: Index, tmp_path: Path) -> None:
    labels = clusters_of(originals, OUT)
    write_labels(tmp_path, originals, "train", labels.astype(np.int32))
    found = read_labels(tmp_path, originals, "train")
    assert found.dtype == np.int64 and found.tolist() == labels.tolist()


def test_labels_of_another_dataset_are_refused(originals: Index, stored: Index, tabled: Tabled, tmp_path: Path) -> None:
    write_labels(tmp_path, originals, "train", clusters_of(originals))
    with pytest.raises(DataError, match=r"of another dataset than .*run their stage again"):
        read_labels(tmp_path, stored, "train")  # as many images
    with pytest.raises(DataError, match="of another dataset than"):
        read_labels(tmp_path, tabled("set", [(0, 0), (1, 1)]), "train")


def _short(folder: Path) -> None:
    np.save(folder / LABELS, np.zeros(31, np.int64))


def _floats(folder: Path) -> None:
    np.save(folder / LABELS, np.zeros(32))


def _objects(folder: Path) -> None:
    np.save(folder / LABELS, np.array([{}] * 32), allow_pickle=True)


def _archive(folder: Path) -> None:
    with (folder / LABELS).open("wb") as file:
        np.savez(file, labels=np.zeros(32, np.int64))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no labels": lambda folder: (folder / LABELS).unlink(),
    "no card": lambda folder: (folder / CARD).unlink(),
    "empty labels": lambda folder: (folder / LABELS).write_bytes(b""),
    "cut labels": lambda folder: (folder / LABELS).write_bytes((folder / LABELS).read_bytes()[:200]),
    "cut in their head": lambda folder: (folder / LABELS).write_bytes((folder / LABELS).read_bytes()[:9]),
    "text for labels": lambda folder: (folder / LABELS).write_text("0 1 2"),
    "a broken archive": lambda folder: (folder / LABELS).write_bytes(b"PK\x03\x04" + b"x" * 50),
    "an archive": _archive,
    "one label less": _short,
    "fractions": _floats,
    "pickled objects": _objects,
    "empty card": lambda folder: (folder / CARD).write_bytes(b""),
    "a card of bytes": lambda folder: (folder / CARD).write_bytes(b"\xff\xfe\x00"),
    "a card that is a list": lambda folder: (folder / CARD).write_text("[1]"),
    "a deep card": lambda folder: (folder / CARD).write_text("[" * 100_000),
    "a card without fingerprint": lambda folder: (folder / CARD).write_text("{}"),
    "a card of another split": lambda folder: (folder / CARD).write_text(
        json.dumps({**json.loads((folder / CARD).read_text()), "split": "gallery"})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_labels_are_refused_by_the_folder_and_the_remedy(originals: Index, tmp_path: Path, damage: str) -> None:
    write_labels(tmp_path, originals, "train", clusters_of(originals))
    DAMAGE[damage](tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path}: .*run their stage again"):
        read_labels(tmp_path, originals, "train")


@pytest.mark.parametrize(
    ("labels", "pid", "wanted"),
    [
        ([0, 0, 1, 1], [5, 5, 9, 9], 1.0),
        ([0, 0, 0, 1], [5, 5, 9, 9], 3 / 4),
        ([-1, 0, -1, 0], [5, 5, 9, 9], 1 / 2),  # what is left out counts neither way
        ([3, 3, 3, 8], [7, 7, 7, 7], 1.0),
        ([0, 1, 2, 3], [7, 7, 7, 7], 1.0),  # purity does not ask for few clusters
    ],
)
def test_purity_is_the_share_of_commonest_identities(labels: list[int], pid: list[int], wanted: float) -> None:
    assert measure_agreement(np.array(labels), np.array(pid), np.zeros(len(pid), int))["purity"] == wanted


@pytest.mark.parametrize("seed", range(6))
def test_pairs_are_counted_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, pid, camid = rng.integers(-1, 6, 60), 10**9 * rng.integers(-2, 5, 60), rng.integers(0, 1 + seed, 60)
    pairs = list(itertools.combinations(range(60), 2))
    found = measure_agreement(labels, pid, camid)
    for name, some in (("", pairs), ("cross_", [(i, j) for i, j in pairs if camid[i] != camid[j]])):
        labelled = {(i, j) for i, j in some if labels[i] == labels[j] >= 0}
        same = {(i, j) for i, j in some if pid[i] == pid[j]}
        if some:
            assert found[f"{name}precision"] == len(labelled & same) / len(labelled)
            assert found[f"{name}recall"] == len(labelled & same) / len(same)
        else:  # one camera
            assert not {"cross_precision", "cross_recall"} & found.keys()


def test_agreement_leaves_out_what_is_a_share_of_nothing() -> None:
    camid = np.zeros(2, int)
    assert measure_agreement(np.array([-1, -1]), np.array([0, 1]), camid) == {}
    assert measure_agreement(np.array([-1, -1]), np.array([1, 1]), camid) == {"recall": 0}
    assert measure_agreement(np.array([0, 1]), np.array([1, 1]), camid) == {"purity": 1, "recall": 0}


def test_agreement_of_many_clusters_takes_memory_of_the_images() -> None:
    every = np.arange(2**18)  # a table of clusters × identities would take 256 GiB
    found = measure_agreement(every, every // 2, every % 2)
    assert found == {"purity": 1, "recall": 0, "cross_recall": 0}
