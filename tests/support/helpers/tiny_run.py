"""A small run: its recipe as a tree, its datasets, and the commands of a user in processes of their own."""

from __future__ import annotations

import atexit
import copy
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

FOUR = ["embedding", "autoencoder", "target-nuisance", "target-embedding"]
OPTIONS = {"identities": 12, "cameras": 2, "images_per_camera": 2, "height": 40}

_HEADS = {
    "data": {"from": "sources", "batch": 8, "augment": {"flip": True}},
    "loss": {"reconstruction": {}},
    "epochs": 1,
}
_TREE: dict[str, Any] = {
    "name": "tiny",
    "model": {"backbone": "test_efficientnet", "embedding": 8, "hidden": 16, "nuisance": {"dim": 4, "per": "camera"}},
    "data": {"sources": ["square", "tower"], "target": "park", "image": [48, 24], "threads": 1},
    "run": FOUR,
    "evaluate": {"Baseline": "embedding", "EmbAE-cam": "target-embedding"},
    "defaults": {"log_every": 2, "optimizer": {"lr": 1e-3}},
    "stages": {
        "embedding": {
            "init": "random",
            "parts": {"backbone": "train", "embedding": "train", "nuisance": "absent", "decoder": "absent"},
            "data": {"from": "sources", "P": 3, "K": 2, "augment": {"flip": True}},
            "loss": {"triplet": {}},
            "epochs": 1,
        },
        "autoencoder": {
            **_HEADS,
            "init": "embedding",
            "parts": {"backbone": "frozen", "embedding": "frozen", "nuisance": "train", "decoder": "train"},
        },
        "target-nuisance": {
            **_HEADS,
            "init": "autoencoder",
            "reinit": ["nuisance"],
            "parts": {"backbone": "frozen", "embedding": "frozen", "nuisance": "train", "decoder": "frozen"},
            "data": {**_HEADS["data"], "from": "target"},
        },
        "target-embedding": {
            **_HEADS,
            "init": "target-nuisance",
            "parts": {"backbone": "frozen", "embedding": "train", "nuisance": "frozen", "decoder": "train"},
            "data": {**_HEADS["data"], "from": "target"},
        },
    },
}


def tree(**changes: Any) -> dict[str, Any]:
    """The recipe, with changes by dotted path, ``.`` written ``__``; None takes a key away."""
    made = copy.deepcopy(_TREE)
    for path, value in changes.items():
        at, keys = made, path.split("__")
        for key in keys[:-1]:
            at = at[key]
        if value is None:
            del at[keys[-1]]
        else:
            at[keys[-1]] = value
    return made


def write(folder: Path, recipe: dict[str, Any], name: str = "tiny.yaml") -> Path:
    """The recipe as a file."""
    path = folder / name
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@functools.cache
def shards() -> Path:
    """A folder with the datasets square, tower and park, drawn once a session."""
    from embae.datasets.readers.read import read_records
    from embae.datasets.sharding.options import ShardOptions
    from embae.datasets.sharding.write_shards import write_shards

    root = Path(tempfile.mkdtemp(prefix="embae-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for name, domain in (("square", "plaza"), ("tower", "station"), ("park", "campus")):
        records = read_records(
            "synthetic", None, {"domain": domain, **{key: str(value) for key, value in OPTIONS.items()}}
        )
        write_shards(name, records, root, source={"reader": "synthetic"}, options=ShardOptions(workers=1))
    return root


def embae(*arguments: object, cwd: Path, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
    """``embae ARGUMENTS`` as a user starts it."""
    return program(
        "-c", "from embae.trainer.commands.app import main; main()", *arguments, cwd=cwd, timeout=timeout, **env
    )


def program(*arguments: object, cwd: Path, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
