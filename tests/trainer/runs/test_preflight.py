"""What is refused before anything starts: by which sentence, with nothing heavy imported and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_run
from safetensors.numpy import save_file

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.card import datasets_in
from embae.datasets.index.shard_reader import ShardReader
from embae.datasets.readers.read import read_records
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards
from embae.trainer.errors import WeightsError
from embae.trainer.recipe.load import check_recipe as recipe_of
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.preflight import check_run
from embae.trainer.runs.run_datasets import draw_synthetic
from embae.trainer.runs.stage_data import open_sampler
from embae.trainer.runs.stage_init import check_inits


def recipe(**changes: Any) -> Recipe:
    return recipe_of(tiny_run.tree(**{"data__root": str(tiny_run.shards()), **changes}), "tiny")


def test_all_is_well() -> None:
    check_run(recipe(), world_size=6)  # an image a rank


WRONG: dict[str, tuple[dict[str, Any], int]] = {
    "lake: no such dataset; datasets beside it: park, square, tower; make one with embae shard (data.root is ": (
        {"data__sources": ["square", "lake"]}, 1),
    " identities, but P is 99; expected 1 to ": ({"stages__embedding__data__P": 99, "data__sources": ["tower"]}, 1),
    " images, but the global batch is 999; expected 1 to ": ({"stages__target-nuisance__data__batch": 999}, 1),
    "stages.embedding.data.P: found square; expected each of square, tower": (
        {"stages__embedding__data__P": {"square": 3}}, 1),
    "stages.embedding.data.P: found square, tower, lake; expected each of square, tower": (
        {"stages__embedding__data__P": {"square": 3, "tower": 3, "lake": 3}}, 1),
    "stages.embedding.data.weights: found tower; expected each of square, tower": (
        {"stages__embedding__data__weights": {"tower": 1.0}}, 1),
    "stages.embedding.data: a global batch of 6 images cannot be shared by 7 ranks; set a larger batch": ({}, 7),
    "stages.embedding.data: a global batch of 4 images cannot be shared by 5 ranks": (
        {"stages__embedding__data__P": {"square": 4, "tower": 2}}, 5),
    "stages.autoencoder.data: a global batch of 8 images cannot be shared by 3 ranks × 4 parts": (
        {"stages__autoencoder__accumulate": 4}, 3),
    "stages.embedding.init: weights.pth does not exist; expected hub, random, a weights file": (
        {"stages__embedding__init": "weights.pth"}, 1),
    "contains no export": ({"stages__embedding__init": "/tmp"}, 1),
    "stages.target-nuisance.init: autoencoder has no nuisance head for camera 1 of park, camera 2 of park; let": (
        {"stages__target-nuisance__reinit": []}, 1),
}  # fmt: skip


CLUSTERED: dict[str, dict[str, Any]] = {
    "stages.both.data.P: found square, lake; expected each of square, tower, park": {"P": {"square": 2, "lake": 2}},
    "stages.both.data.weights: found park; expected each of square, tower, park": {"weights": {"park": 1.0}},
    "park: 5 identities, but P is 6; expected 1 to 5": {"P": {"square": 2, "tower": 2, "park": 6}},
    "square: 8 identities, but P is 99; expected 1 to 8": {"P": 99},
    "stages.both.data: a global batch of 4 images cannot be shared by 5 ranks": {"P": 2},
}


@pytest.mark.parametrize("message", CLUSTERED)
def test_what_a_clustering_can_not_mend_is_reported_before_it(message: str) -> None:
    parts = {"backbone": "frozen", "embedding": "frozen", "nuisance": "absent", "decoder": "absent"}
    stages = {"cluster": {"init": "embedding", "parts": parts, "data": {"from": "target", "batch": 8},
                          "cluster": {"kmeans": {"clusters": 5}}},
              "both": {"init": "embedding", "parts": {**parts, "embedding": "train"}, "epochs": 1,
                       "data": {"from": "all", "labels": "cluster", "P": 3, "K": 2, **CLUSTERED[message]},
                       "loss": {"triplet": {}}}}
    changes = {f"stages__{name}": stage for name, stage in stages.items()}
    with pytest.raises(DataError) as told:
        check_run(recipe(run=["embedding", "cluster", "both"], evaluate={"Both": "both"}, **changes), world_size=5)
    assert message in str(told.value)


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_reported(message: str) -> None:
    changes, ranks = WRONG[message]
    with pytest.raises((DataError, WeightsError)) as caught:
        check_run(recipe(**changes), ranks)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)  # one mistake, one sentence, though several stages share it


def test_several_mistakes_are_reported_at_once() -> None:
    with pytest.raises(DataError) as caught:
        check_run(recipe(data__sources=["lake"], data__target="sea"), 1)
    assert [Path(line.split(":")[0]).name for line in str(caught.value).splitlines()] == ["lake", "sea"]


def test_without_evaluation_the_target_need_not_be_there() -> None:
    check_run(recipe(run=["embedding"], evaluate={}, data__target="lake"), 1)
    with pytest.raises(DataError, match="lake"):
        check_run(recipe(run=["embedding"], evaluate={"Baseline": "embedding"}, data__target="lake"), 1)


def test_stages_open_their_own_data() -> None:
    found = recipe()
    assert open_sampler(found, "embedding").view.names == ["square", "tower"]
    assert open_sampler(found, "target-nuisance").view.names == ["park"]
    assert open_sampler(found, "embedding").batch == 6 and open_sampler(found, "autoencoder").batch == 8


def test_synthetic_data_is_drawn_where_it_is_used_and_missing(tmp_path: Path) -> None:
    (tmp_path / "park").symlink_to(tiny_run.shards() / "park")
    options = {"domain": "mall", **tiny_run.OPTIONS}
    found = recipe(
        data__root=str(tmp_path),
        data__sources=["mall"],
        data__synthetic={"mall": options, "park": options, "unused": options},
    )
    draw_synthetic(found)
    assert datasets_in(tmp_path) == ["mall", "park"]
    assert (tmp_path / "park").is_symlink()
    check_run(found, 1)
    with pytest.raises(DataError, match="unknown option 'people'"):
        draw_synthetic(recipe(data__sources=["lake"], data__synthetic={"lake": {"domain": "mall", "people": 3}}))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()
    path.write_bytes(data)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def swap(folder: Path, name: str) -> None:
    (folder / name).write_bytes((tiny_run.shards() / "square" / name).read_bytes())


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (lambda park: (park / "query-000000.tar").unlink(), "1 of 3 shards are missing (query-"),
    "a shard is cut": (lambda park: cut(park / "gallery-000000.tar"), "shards are cut short (gallery-000000.tar has"),
    "the index is cut": (lambda park: cut(park / "index.arrow"), "index.arrow is not a whole Arrow file"),
    "an index of another dataset": (lambda park: swap(park, "index.arrow"), "they do not belong to the same dataset"),
    "a card of another dataset": (lambda park: swap(park, "dataset.yaml"), "they do not belong to the same dataset"),
    "another format": (lambda park: edit(park / "dataset.yaml", "format: 1", "format: 2"), "dataset.yaml has format 2"),
    "a name that leads elsewhere": (lambda park: edit(park / "dataset.yaml", "name: park", "name: ../x"),
                                    "does not have name"),
    "a flipped bit in an identity": (lambda park: flip(park / "index.arrow", place_of_pids(park)),
                                     "index.arrow: its rows have the fingerprint"),
}  # fmt: skip


def place_of_pids(park: Path) -> int:
    return (park / "index.arrow").read_bytes().index(Index.open(park).pid[:8].tobytes())


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_data_are_reported_before_the_start(tmp_path: Path, damage: str) -> None:
    shutil.copytree(tiny_run.shards() / "park", tmp_path / "park")
    for name in ("square", "tower"):
        (tmp_path / name).symlink_to(tiny_run.shards() / name)
    harm, message = DAMAGE[damage]
    harm(tmp_path / "park")
    with pytest.raises(DataError) as caught:
        check_run(recipe(data__root=str(tmp_path)), 1)
    assert message in str(caught.value) and str(tmp_path / "park") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.json", "model.safetensors"])
def test_a_damaged_export_to_start_from_is_reported_before_the_start(tmp_path: Path, file: str) -> None:
    (tmp_path / "model.json").write_text(json.dumps({
        "format": 1, "model": {}, "parts": ["backbone"], "image": [48, 24], "mean": [0, 0, 0], "std": [1, 1, 1],
        "heads": [], "cameras": [], "classes": 0}))  # fmt: skip
    save_file({"backbone.x": np.zeros((3, 4), np.float32)}, tmp_path / "model.safetensors")
    found = recipe(stages__embedding__init=str(tmp_path))
    check_run(found, 1)
    cut(tmp_path / file)
    with pytest.raises(WeightsError, match=rf"^stages\.embedding\.init: {tmp_path / file}: "):
        check_run(found, 1)
    weights = recipe(stages__embedding__init=str(tmp_path / "model.safetensors"))
    if file == "model.safetensors":
        with pytest.raises(WeightsError, match=r"^stages\.embedding\.init: .*not a whole safetensors file"):
            check_run(weights, 1)


@pytest.mark.parametrize(
    "override",
    [
        "data.target=lake",
        "stages.embedding.data.P=99",
        "stages.embedding.init=none.safetensors",
        "stages.embedding.optimizer.rl=1",
    ],
)
def test_train_fails_at_once_and_leaves_nothing(tmp_path: Path, override: str) -> None:
    tiny_run.write(tmp_path, tiny_run.tree(data__root=str(tiny_run.shards())))
    command = "from embae.trainer.commands.app import main; main()"
    done = tiny_run.program(
        "-X", "importtime", "-c", command, "train", "tiny.yaml", override, "--nproc", 2, cwd=tmp_path
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 2
    assert lines[0].startswith("embae: ") and not any("Traceback" in line for line in lines)
    assert len(lines) == 1 or "1 mistake" in lines[0]
    assert "numpy" in imported or "1 mistake" in lines[0]
    assert not imported & {"torch", "deepspeed", "timm", "nvidia.dali", "torchvision"}
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_target_that_states_no_cameras_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    park = Index.open(tiny_run.shards() / "park")
    for number, row in enumerate(range(*park.rows("train").indices(len(park)))):
        image = ShardReader(park, 1).read(row)
        (tmp_path / f"{number}.jpg").write_bytes(image)
    records = read_records("folder", tmp_path, {})
    write_shards("yard", records, tmp_path / "shards", source={"reader": "folder"}, options=ShardOptions(workers=1))
    for name in ("square", "tower"):
        (tmp_path / "shards" / name).symlink_to(tiny_run.shards() / name)
    one = recipe(data__root=str(tmp_path / "shards"), data__target="yard", evaluate={})
    check_run(one, world_size=1)
    said = capsys.readouterr().err
    assert said.count("yard states one camera only, so what is done camera by camera is done once for all images") == 1
    check_run(recipe(), world_size=1)
    assert "one camera" not in capsys.readouterr().err
    # A camera-aware clustering knows no others to look at, even where nothing else goes by camera.
    group = {"init": "embedding", "parts": {"backbone": "frozen", "embedding": "frozen", "nuisance": "absent",
             "decoder": "absent"}, "data": {"from": "target", "batch": 8}}
    for cluster, told in (({"linkage": {"distance": 0.5}}, True), ({"dbscan": {"eps": 0.5}}, False)):
        check_run(recipe(data__root=str(tmp_path / "shards"), data__target="yard", evaluate={},
                         run=["embedding", "group"], stages__group={**group, "cluster": cluster}),
                  world_size=1)  # fmt: skip
        assert ("states one camera only" in capsys.readouterr().err) == told


def test_what_a_stage_that_is_done_started_from_may_be_gone(tmp_path: Path) -> None:
    moved = recipe(stages__embedding__init=str(tmp_path / "moved"))
    with pytest.raises(WeightsError, match=r"stages.embedding.init: .*moved does not exist"):
        check_inits(moved, tmp_path)
    (tmp_path / "embedding").mkdir()
    (tmp_path / "embedding" / "done").write_text("{}")
    check_inits(moved, tmp_path)
