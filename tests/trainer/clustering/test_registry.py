"""What every clustering method must do, whatever its algorithm; a new method adds its keys to `KEYS`."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from helpers.people_features import people

from embae.trainer.clustering.method import ClusteringMethod
from embae.trainer.clustering.registry import Cluster
from embae.trainer.retrieval.work_split import WorkSplit

KEYS = {"kmeans": {"clusters": 7, "similarity": 0.3}, "dbscan": {"k1": 8, "min_samples": 2}, "linkage": {}}


def method(key: str) -> ClusteringMethod:
    cluster = Cluster.model_validate({key: KEYS[key]})
    assert cluster.key == key
    return cluster.method


def cameras(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, count)


def test_every_method_is_tested_here() -> None:
    assert list(KEYS) == list(Cluster.model_fields)


@pytest.mark.parametrize("key", KEYS)
def test_labels_are_numbered_without_gaps_and_the_same_twice(key: str) -> None:
    features = people(0, 120)
    labels, again = (method(key).labels(features, cameras(120), seed=3, split=WorkSplit(threads=threads))
                     for threads in (1, 2))
    assert labels.shape == (120,) and labels.dtype == np.int64 and labels.max() > 0
    assert sorted(set(labels[labels >= 0].tolist())) == list(range(labels.max() + 1))
    assert np.array_equal(labels, again)


@pytest.mark.parametrize("key", KEYS)
def test_what_the_first_rank_computes_is_every_ranks(key: str) -> None:
    labels = np.arange(40)
    split = WorkSplit(on_first=lambda compute: labels)
    assert method(key).labels(people(0, 40), cameras(40), seed=0, split=split) is labels


@pytest.mark.parametrize("key", KEYS)
def test_only_a_method_that_says_so_looks_at_cameras(key: str) -> None:
    features, split = people(0, 120), WorkSplit()
    labels = method(key).labels(features, cameras(120), seed=0, split=split)
    others = method(key).labels(features, np.zeros(120, np.int64), seed=0, split=split)
    assert np.array_equal(labels, others) != method(key).by_camera


@pytest.mark.parametrize("key", KEYS)
def test_clusters_have_the_size_that_the_method_states(key: str) -> None:
    labels = method(key).labels(people(0, 120), cameras(120), seed=0, split=WorkSplit())
    assert np.bincount(labels[labels >= 0]).min() >= method(key).smallest_cluster


@pytest.mark.parametrize("key", KEYS)
def test_a_method_says_what_to_change(key: str) -> None:
    assert any(field in method(key).advice for field in type(method(key)).model_fields)


def test_the_number_of_clusters_before_they_are_computed() -> None:
    assert method("kmeans").cluster_count(100, cluster_size=4, least=50) == 7
    for key in ("dbscan", "linkage"):
        assert method(key).cluster_count(100, cluster_size=4, least=5) == 25
        assert method(key).cluster_count(100, cluster_size=4, least=50) == 50
    outliers_too = Cluster.model_validate({"dbscan": {"outliers": "own"}}).method
    assert [method("dbscan").smallest_cluster, outliers_too.smallest_cluster, method("linkage").smallest_cluster] == [
        2, 1, 2]


def test_more_clusters_than_images_are_a_mistake() -> None:
    assert method("kmeans").mistakes(7) == []
    assert method("kmeans").mistakes(6) == ["clusters: 7 of 6 images; expected at most as many as images"]


def test_a_recipe_loads_without_the_libraries_that_compute() -> None:
    code = ("import sys, embae.trainer.clustering.registry; "
            "print([name for name in ('scipy', 'sklearn', 'torch') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
