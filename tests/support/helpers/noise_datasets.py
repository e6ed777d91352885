"""Two sources and a target of images that are noise, in real shards, and settings that make any recipe small on them.

The target is there three times: with its labels, without (``nulled``), and with a single image left of its camera 1
(``fewer``). It has more images than are computed at a time, so that their order shows wherever it plays a part.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch.distributed as dist
from PIL import Image

from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import Record, Split
from embae.datasets.sampling.view import View
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards
from embae.trainer.runtime.distributed import World

SIZE = (32, 16)
TARGET = 141  # images to train on

_SMALL = """
model: {backbone: test_byobnet, last_stride: 2, embedding: 8, hidden: 16, nuisance: {dim: 6}}
data: {root: ROOT, sources: [one, two], target: target, image: [32, 16], loader: webdataset, threads: 1}
defaults: {precision: fp32, optimizer: {lr: 1e-3}}
scoring: {tta: none}
rounds: 2
stages:
  embedding: {init: random, data: {P: 3, K: 4}, schedule: null, epochs: 1}
  supervised: {data: {P: 4, K: 3}, schedule: null, epochs: 1}
  autoencoder: {epochs: 1, data: {batch: 16}}
  target-nuisance: {epochs: 1, data: {batch: 32}}
  target-embedding: {epochs: 1, data: {batch: 32}}
  calibrate: {data: {batch: 16}}
  adversarial: {epochs: 1, data: {P: 3, K: 4}}
  target-adversarial: {epochs: 1, data: {batch: 32}}
  classification: {init: random, data: {P: 3, K: 2}, schedule: null, epochs: 1}
  cluster: {data: {batch: 16}, cluster: {kmeans: {clusters: 6, similarity: 0.3}}}
  retrain: {data: {P: 2, K: 2}, epochs: 0.5}
  labelled: {init: random, data: {P: 3, K: 4}, schedule: null, epochs: 1}
  merged: {data: {P: 2, K: 2}, schedule: {warmup: 0.1, cosine: 0.3}}
  group: {data: {batch: 16}, cluster: {linkage: {distance: 0.5}}}
  adapt: {data: {P: 3, K: 2, augment: {pad: 2}}, epochs: 0.5}
  recalibrate: {data: {batch: 16}}
"""


@dataclass(frozen=True)
class Drawn:
    """An image that is drawn from numbers: what is on it, and what its camera adds."""

    number: int
    camera: int

    def read(self) -> bytes:
        noise = np.random.default_rng(self.number).integers(0, 256, (8, 4, 3)).astype(float)
        cast = np.random.default_rng(1000 + self.camera).integers(0, 256, 3)
        pixels = Image.fromarray((0.7 * noise + 0.3 * cast).astype(np.uint8))
        file = io.BytesIO()
        pixels.resize(SIZE[::-1], Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
        return file.getvalue()


@dataclass(frozen=True)
class PlainNoise:
    """An image of noise that is drawn from a number."""

    number: int

    def read(self) -> bytes:
        random = np.random.default_rng(self.number)
        pixels = random.integers(0, 256, (8, 4, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize(SIZE[::-1], Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
        return file.getvalue()


def records(first: int, identities: int, images: int, cameras: int, split: Split = "train") -> list[Record]:
    """Images of people who are seen by all cameras; keys do not sort as identities do."""
    made = []
    for number in range(identities * images):
        camera, key = number % cameras, f"k{(37 * number) % 997:03d}{split}{number}"
        made.append(Record(key, split, number // images, camera, Drawn(first + number, camera)))
    return made


def shards(folder: Path) -> Path:
    """Writes all of it into a folder, which has ``labelled``, ``nulled`` and ``fewer`` then."""
    target = records(5000, 12, 12, 3)[:TARGET]
    scored = [*records(7000, 6, 3, 3, "query"), *records(8000, 6, 6, 3, "gallery")]
    nulled = [*(replace(record, pid=None) for record in target), *scored]
    others = [record for record in target if record.camid != 1]
    for root, name, images in (("labelled", "one", records(0, 5, 6, 3)), ("labelled", "two", records(1000, 4, 6, 2)),
                               ("labelled", "target", [*target, *scored]), ("nulled", "target", nulled),
                               ("fewer", "target", [*others, target[1], *scored])):
        write_shards(
            name, images, folder / root, source={"reader": "test"}, options=ShardOptions(workers=1), progress=silent
        )
    for root, name in (("nulled", "one"), ("nulled", "two"), ("fewer", "one"), ("fewer", "two")):
        (folder / root / name).symlink_to(folder / "labelled" / name)
    return folder


@contextlib.contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def shared_shards(world: World, folder: Path) -> Path:
    """The same, written once for all launches of a session by whoever comes first."""
    root = folder.parent / "small-shards"
    if world.first and not root.exists():
        shards(root)
    dist.barrier()
    return root


def settings(folder: Path, root: Path) -> str:
    """A file of settings that make a recipe small, on the data below a root."""
    path = folder / f"small-{root.name}.yaml"
    if not path.exists():
        path.write_text(_SMALL.replace("ROOT", str(root)), encoding="utf-8")
    return str(path)


def target(root: Path) -> View:
    """The target's images to train on."""
    return View([Index.open(root / "target")], "train")
