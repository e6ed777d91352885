"""The shipped recipes in small, whole runs over real shards: who moves in which stage, and that labels play no part."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.noise_datasets import settings, shared_shards, target
from helpers.ranks import on_ranks
from helpers.toy_models import RECONSTRUCTION, ToyView, heads, images, model, parts_in, share_of, stage
from safetensors.torch import load_file

from embae.datasets.index.arrow_index import Index
from embae.datasets.sampling.pseudo_labels import read_labels
from embae.trainer.model.camera_tables import COMMON, TABLES
from embae.trainer.recipe.load import load_recipe
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import PARTS
from embae.trainer.runs.stage_folder import EXPORT, read_cost
from embae.trainer.runtime.distributed import World
from embae.trainer.runtime.signals import StopSignals

VARIANTS = ["embae", "embae-fix", "embae-new", "embae-dataset", "embae-cam", "aae", "pul", "pretrain-merged",
            "bn-camera", "bn-target", "features-camera", "centred-camera", "bn-camera-embae-fix",
            "bn-camera-embae-cam", "adapt-best"]  # fmt: skip
CALIBRATED = [name for name in VARIANTS if "camera" in name or name == "bn-target"]


def small(name: str, folder: Path, root: Path, *overrides: str) -> Recipe:
    return load_recipe(name, ["evaluate=null", *overrides], [settings(folder, root)])


@on_ranks(1)
def variants(world: World, folder: Path) -> dict[str, Any]:
    """Each variant on the target, and on the target without its labels; what they share is trained once."""
    from embae.trainer.comparison.compare import Run, share_stages
    from embae.trainer.training.run import train

    root, said = shared_shards(world, folder), {}
    for labels in ("labelled", "nulled"):
        for name in VARIANTS:
            run = Run(small(name, folder, root / labels), folder / "variants" / labels / name)
            share_stages(run, folder / "variants")
            with contextlib.redirect_stdout(io.StringIO()) as console:
                train(run.recipe, run.folder, world, StopSignals())
            said[f"{labels} {name}"] = console.getvalue()
    return said


@pytest.fixture
def ran(computed: Callable[..., Any], rank_folder: Callable[[int], Path]) -> Callable[..., tuple[Recipe, Path]]:
    """``ran(variant)``: its recipe and its run folder."""
    computed(variants, 1)
    folder = rank_folder(1)
    return lambda name, labels="labelled": (small(name, folder, folder.parent / "small-shards" / labels),
                                            folder / "variants" / labels / name)


def state(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / name / EXPORT / "model.safetensors")


def by_part(found: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in found.items() if key.split(".")[0] == part}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_stage_moves_what_it_trains_alone(ran: Callable[..., tuple[Recipe, Path]], name: str) -> None:
    recipe, run = ran(name)
    for own, keys in recipe.stages.items():
        if keys.cluster or keys.init not in recipe.stages:
            continue
        before, after = state(run, keys.init), state(run, own)
        for part in PARTS:
            first, then = by_part(before, part), by_part(after, part)
            assert bool(then) == (keys.use(part) != "absent")
            if keys.calibrate:
                statistics = ("running_mean", "running_var") if keys.calibrate.per == "dataset" else TABLES
                same = [key for key in first if not key.endswith(statistics)]
                assert all(torch.equal(first[key], then[key]) for key in same if key in then)
                assert {key.rpartition(".")[2] for key in then.keys() - first.keys()} <= set(TABLES)
            elif keys.use(part) == "frozen":
                assert first.keys() == then.keys()
                assert all(torch.equal(value, then[key]) for key, value in first.items()), (own, part)
            elif keys.use(part) == "train" and first and part not in keys.reinit:
                weights = [key for key in first if key.endswith((".weight", ".bias"))
                           and not (recipe.model.head == "bnneck" and key == "embedding.bias")]  # which stays 0
                # A convolution of this net whose output is multiplied by zero has no gradient in its first steps.
                still = [key for key in weights if torch.equal(first[key], then[key])]
                assert len(still) <= (0.2 * len(weights) if part == "backbone" else 0), (own, part, still)
            elif part in keys.reinit:
                assert any(first[key].shape != value.shape or not torch.equal(first[key], value)
                           for key, value in then.items() if key in first)


def test_heads_serve_what_the_variant_says(ran: Callable[..., tuple[Recipe, Path]]) -> None:
    cameras = [["one", 0], ["one", 1], ["one", 2], ["two", 0], ["two", 1]]
    here = [["target", 0], ["target", 1], ["target", 2]]
    for name, first, last in (("embae-new", [[]], [[]]), ("embae-dataset", [["one"], ["two"]], [["target"]]),
                              ("embae-cam", cameras, here), ("bn-camera-embae-cam", cameras, here)):
        _, run = ran(name)
        for own, wanted in (("autoencoder", first), ("target-nuisance", last), ("target-embedding", last)):
            assert json.loads((run / own / EXPORT / "model.json").read_text())["heads"] == wanted, (name, own)
    _, run = ran("bn-camera-embae-cam")
    assert json.loads((run / "calibrate" / EXPORT / "model.json").read_text())["heads"] == cameras  # carried along


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibrated_stages_hold_their_tables(ran: Callable[..., tuple[Recipe, Path]], name: str) -> None:
    recipe, run = ran(name)
    keys = recipe.stages["calibrate"].calibrate
    assert keys is not None
    found = state(run, "calibrate")
    tables = {(key.split(".")[0], key.rpartition(".")[2]) for key in found if key.rpartition(".")[2] in TABLES}
    norms = {(part, table) for part in ("backbone", "embedding") for table in TABLES[:2]}
    part = {"features": "backbone", "embedding": "embedding"}.get(keys.what)
    assert tables == ({(part, table) for table in TABLES[2:] if table != COMMON or keys.what == "features"}
                      if part else norms if keys.per == "camera" else set())
    card = json.loads((run / "calibrate" / EXPORT / "model.json").read_text())
    assert card["cameras"] == ([] if keys.per == "dataset" else [["target", 0], ["target", 1], ["target", 2]])
    if "target-embedding" in recipe.stages:  # the embedding trained on: its tables are gone, the backbone's are not
        after = state(run, "target-embedding")
        assert by_part(after, "backbone").keys() == by_part(found, "backbone").keys()
        assert not any(key.rpartition(".")[2] in TABLES for key in by_part(after, "embedding"))


def test_clusters_are_labels_for_the_targets_images(ran: Callable[..., tuple[Recipe, Path]]) -> None:
    recipe, run = ran("pul")
    assert recipe.run == ["classification", "cluster-1", "retrain-1", "cluster-2", "retrain-2"]
    index = Index.open(recipe.data.root / "target")
    for number in (1, 2):
        labels = read_labels(run / f"cluster-{number}" / EXPORT, index, "train")
        counts = np.bincount(labels[labels >= 0])
        assert 2 <= len(counts) <= 6 and counts.min() >= 2
        card = json.loads((run / f"retrain-{number}" / EXPORT / "model.json").read_text())
        assert card["classes"] == len(counts) and card["parts"] == ["backbone", "classifier"]
        assert read_cost(run, f"cluster-{number}").steps == 0 and read_cost(run, f"cluster-{number}").images == 141
    kinds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clusters = [line for line in kinds if line["kind"] == "cluster"]
    assert [line["stage"] for line in clusters] == ["cluster-1", "cluster-2"]
    assert all(line["images"] == 141 >= line["kept"] and 0 < line["purity"] <= 1 for line in clusters)
    assert all(0 <= line[f"{pairs}recall"] <= 1 and f"{pairs}precision" in line for line in clusters
               for pairs in ("", "cross_"))


def test_adaptation_keeps_each_cameras_statistics(ran: Callable[..., tuple[Recipe, Path]]) -> None:
    recipe, run = ran("adapt-best")
    assert recipe.run[1:] == ["calibrate", *(f"{name}-{number}" for number in (1, 2)
                                             for name in ("group", "adapt", "recalibrate"))]
    for own in ("calibrate", "adapt-1", "recalibrate-1", "adapt-2", "recalibrate-2"):
        card = json.loads((run / own / EXPORT / "model.json").read_text())
        assert card["cameras"] == [["target", 0], ["target", 1], ["target", 2]]
    tables = [by_part(state(run, own), "backbone") for own in ("calibrate", "adapt-1", "recalibrate-1")]
    keys = [key for key in tables[0] if key.endswith(TABLES[:2])]
    for before, after in itertools.pairwise(tables):
        assert all(not torch.equal(before[key][camera], after[key][camera]) for key in keys for camera in range(3))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["stage"] == "adapt-2" and line["kind"] == "train"]
    assert {"memory", "near_memory", "proxies", "near_proxies", "triplet"} <= trained[-1].keys()


def test_adversarial_stages_train_with_all_their_losses(ran: Callable[..., tuple[Recipe, Path]]) -> None:
    _, run = ran("aae")
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for own, losses in (("adversarial", {"reconstruction", "adversarial", "discriminator", "told_apart", "triplet"}),
                        ("target-adversarial", {"reconstruction", "adversarial", "discriminator", "told_apart"})):
        lines = [line for line in found if line["stage"] == own and line["kind"] == "train"]
        assert lines and all(losses <= line.keys() for line in lines)
        assert ("triplet" in lines[-1]) == ("triplet" in losses)


def content(recipe: Recipe, run: Path, name: str) -> dict[str, str]:
    """What a stage left, by file: SHA-256, of pseudo-labels by image."""
    folder = run / name / EXPORT
    if recipe.stages[name].cluster:
        index = Index.open(recipe.data.root / "target")
        keys = index.keys.to_pylist()[index.rows("train")]
        labels = read_labels(folder, index, "train").tolist()
        return {"labels": str(sorted(zip(keys, labels, strict=True)))}
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", VARIANTS)
def test_without_the_targets_labels_every_export_is_the_same(
    ran: Callable[..., tuple[Recipe, Path]], name: str
) -> None:
    recipe, run = ran(name)
    other, nulled = ran(name, "nulled")
    assert Index.open(recipe.data.root / "target").fingerprint != Index.open(other.data.root / "target").fingerprint
    for own in recipe.run:
        assert content(recipe, run, own) == content(other, nulled, own), own
        trained_apart = recipe.stages[own].data.from_ != "sources"
        assert ((run / own).resolve() != (nulled / own).resolve()) == trained_apart


def test_what_variants_share_is_trained_once(computed: Callable[..., Any]) -> None:
    said = computed(variants, 1)[0]
    assert "[embedding] done before" not in said["labelled embae"]
    assert all("[embedding] done before" in said[f"labelled {name}"] for name in VARIANTS[1:]
               if name not in ("pul", "pretrain-merged", "adapt-best"))
    for name, first in (("embae-new", False), ("embae-dataset", True), ("embae-cam", True)):
        assert ("[autoencoder] done before" not in said[f"labelled {name}"]) == first
    assert all("[target-embedding] done before" not in console for console in said.values())


@on_ranks(1)
def one_step_of_heads(world: World, folder: Path) -> dict[str, Any]:
    """Heads after one step on the same batch, on that with other images of camera 1, and on that without any."""
    from embae.trainer.model.batch_norm import use_global_batch_norm
    from embae.trainer.training.engine import Engine
    from embae.trainer.training.objective import Objective

    uses = parts_in("frozen", "frozen", "train", "frozen")
    inputs, view = images(12), ToyView([0] * 12, [0, 1, 2] * 4)
    other = torch.where(torch.from_numpy(view.camid == 1)[:, None, None, None], images(12, seed=7), inputs)
    moved = ToyView([0] * 12, [0, 2, 2] * 4)  # those of camera 1 are of camera 2
    found = {}
    for name, (seen, shown) in {"same": (view, inputs), "again": (view, inputs), "other images": (view, other),
                                "no images": (moved, inputs)}.items():
        made = model(uses, heads(4))
        use_global_batch_norm(made, sync=True)
        keys = stage(uses, RECONSTRUCTION, optimizer={"name": "adam", "lr": 1e-2})
        assert keys.loss
        engine = Engine(Objective(made, keys.loss), keys, largest=12)
        for step in range(2):
            engine.step(share_of(seen, shown, np.arange(12), 0, 1, step=step), 1e-2)
        found[name] = engine.state()
        engine.close()
    found["before"] = model(uses, heads(4)).state_dict()
    return found


def test_a_head_changes_through_the_images_of_its_own_camera_alone(computed: Callable[..., Any]) -> None:
    found = computed(one_step_of_heads, 1)[0]

    def differ(a: str, b: str) -> list[int]:
        keys = [key for key in found["before"] if key.startswith("nuisance")]
        return sorted({int(key.split(".")[2]) for key in keys if not torch.equal(found[a][key], found[b][key])})

    assert differ("same", "again") == []
    assert differ("before", "same") == [0, 1, 2]
    assert differ("same", "other images") == [1]
    assert differ("before", "no images") == [0, 2] and differ("same", "no images") == [1, 2]


@on_ranks(1, 2)
def order_of_computing(world: World, folder: Path) -> dict[str, Any]:
    """Cached features, and embeddings to cluster, of the target with and without labels, by image."""
    from embae.datasets.sampling.content_order import order_by_content
    from embae.trainer.clustering.registry import Cluster
    from embae.trainer.inference.embeddings import embedded
    from embae.trainer.inference.features import cached_features
    from embae.trainer.inference.options import Inference, Reading
    from embae.trainer.training.cluster_stage import pseudo_labels

    root, found = shared_shards(world, folder), {}
    for labels in ("labelled", "nulled"):
        view, recipe = target(root / labels), small("baseline", folder, root / labels)
        made = model(parts_in("frozen", "frozen")).eval()
        inference = Inference(recipe.data.spec, world, folder / "order", Reading("webdataset", 1, 16))
        cached = cached_features(made, view, inference, bf16=False)
        order = np.argsort(view.fingerprints(), kind="stable")
        assert len(np.unique(view.fingerprints())) == len(view)
        rows = order_by_content(view)
        with embedded(made, view, inference, rows=rows) as memmap:
            vectors = torch.from_numpy(memmap.copy())
        found[labels] = [torch.from_numpy(cached.features[order].copy()), vectors]
        cameras = view.column("camid", rows)
        for keys in ({"kmeans": {"clusters": 5, "similarity": 0.1}}, {"linkage": {"distance": 0.9}},
                     {"dbscan": {"k1": 8, "min_samples": 2}},
                     {"dbscan": {"k1": 8, "min_samples": 2, "outliers": "own"}}):
            clusters = pseudo_labels(vectors.numpy(), cameras, Cluster.model_validate(keys), "target", 0, world)
            assert clusters.max() > 1
            found[labels].append(torch.from_numpy(clusters))
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_features_and_clusters_do_not_depend_on_the_order_of_the_index(
    computed: Callable[..., Any], world_size: int
) -> None:
    """To the last bit: the order knows pids, and batches of other images round otherwise."""
    found = computed(order_of_computing, world_size)[0]
    for labelled, nulled in zip(found["labelled"], found["nulled"], strict=True):
        assert torch.equal(labelled, nulled)
    for vectors, wanted in zip(found["labelled"][1:], computed(order_of_computing, 1)[0]["labelled"][1:], strict=True):
        assert torch.equal(vectors, wanted)
    *_, dropped, own = found["labelled"]
    assert (own >= 0).all() and torch.equal(own[dropped >= 0], dropped[dropped >= 0])
