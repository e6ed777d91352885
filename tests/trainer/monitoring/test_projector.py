"""What TensorBoard's projector is given, read back by its own reader."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from helpers import tiny_run
from PIL import Image
from tensorboard.plugins.projector import projector_plugin
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

from embae.datasets.index.arrow_index import Index
from embae.datasets.index.shard_reader import ShardReader
from embae.trainer.monitoring import projector
from embae.trainer.monitoring.projector import SIDE, write_projector


def written(folder: Path, index: Index) -> tuple[EmbeddingInfo, np.ndarray, list[list[str]], Image.Image, np.ndarray]:
    """The one set of embeddings: what is said of it, points, lines of metadata, sprite, and all that there were."""
    counts = index.count("query"), index.count("gallery")
    every = np.random.default_rng(0).normal(size=(sum(counts), 5)).astype(np.float32)
    write_projector(folder, index, every[:counts[0]], every[counts[0]:], seed=0)
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (told,) = config.embeddings
    points = projector_plugin._read_tensor_tsv_file(str(folder / told.tensor_path))
    lines = [line.split("\t") for line in (folder / told.metadata_path).read_text().splitlines()]
    return told, points, lines, Image.open(folder / told.sprite.image_path), every


def test_every_point_has_its_image_and_who_is_on_it(tmp_path: Path) -> None:
    index = Index.open(tiny_run.shards() / "park")
    told, points, (head, *lines), sprite, every = written(tmp_path, index)
    assert told.tensor_name == "park" and list(told.tensor_shape) == list(points.shape)
    assert head == ["pid", "camid", "key", "split", "dataset"] and len(lines) == len(points)
    rows = [index.keys.to_pylist().index(line[2]) for line in lines]
    assert len(set(rows)) == len(rows)
    starts = {"query": index.rows("query").start, "gallery": index.rows("gallery").start - index.count("query")}
    side = int(np.ceil(np.sqrt(len(rows))))
    assert sprite.size == (side * SIDE, side * SIDE) and list(told.sprite.single_image_dim) == [SIDE, SIDE]
    for number, (row, line) in enumerate(zip(rows, lines, strict=True)):
        assert [*line[:2], line[4]] == [str(index.pid[row]), str(index.camid[row]), "park"]
        own = every[row - starts[line[3]]]
        np.testing.assert_allclose(points[number], own / np.linalg.norm(own), atol=1e-4)
        with ShardReader(index) as reader:
            picture = Image.open(io.BytesIO(reader.read(row))).convert("RGB")
        picture = picture.resize((round(SIDE * picture.width / picture.height), SIDE))  # people are higher than wide
        left, top = number % side * SIDE + (SIDE - picture.width) // 2, number // side * SIDE
        shown = np.asarray(sprite.crop((left, top, left + picture.width, top + SIDE)), float)
        assert np.abs(shown - np.asarray(picture, float)).mean() < 8


def test_of_many_images_a_sample_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector, "POINTS", 10)
    _, points, lines, sprite, _ = written(tmp_path, Index.open(tiny_run.shards() / "park"))
    people = {line[0] for line in lines[1:]}
    assert 0 < len(points) <= 10 and len(lines) == len(points) + 1 and sprite.size == (3 * SIDE, 3 * SIDE)
    index = Index.open(tiny_run.shards() / "park")
    both = np.r_[index.rows("query"), index.rows("gallery")]
    whole = sum(str(pid) in people and index.role[row] == 0 for row, pid in zip(both, index.pid[both], strict=True))
    assert len(points) == whole  # all images of those who are shown
