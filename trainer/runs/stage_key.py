"""Whose result a stage's is: a key of all that it depends on, so that recipes that begin alike share their stages.

In the key: the stage as resolved, those that it starts from, seed, name, data by content, weights it starts from, and
`METHOD`. Not in it: world size, threads, what is logged and when.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embae.datasets.index.arrow_index import Index
from embae.datasets.index.merged import Merged, is_merged
from embae.datasets.remote.url import Url
from embae.trainer.recipe.model import Model
from embae.trainer.recipe.schema import Recipe

METHOD = {"loss": 1, "calibrate": 2, "cluster": 1}
"""By what a stage does; raise one where the same recipe comes to mean another computation. Calibration 2 mixes with
shared statistics."""

_NEWER = ("pooling", "last_stride", "head", "unit")
"""Keys of the model that are newer than some comparisons, which their defaults leave as they are."""
_UNSEEN = {"log_every", "evaluate_every"}


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """The key of each stage of a run, in the run's order: 24 hexadecimal digits.

    Raises:
        DataError: A dataset cannot be opened.
    """
    found: dict[str, str] = {}
    for name in recipe.run:
        found[name] = _digest(_depends(recipe, name, found))
    return found


def _depends(recipe: Recipe, name: str, before: dict[str, str]) -> dict[str, Any]:
    stage, data = recipe.stages[name], recipe.data
    keys = stage.model_dump(mode="json", by_alias=True, exclude=_UNSEEN)
    if not stage.ema:
        del keys["ema"]  # what is newer than a comparison leaves its stages as they are
    for term in ("memory", "proxies") if stage.loss else ():
        if not getattr(stage.loss, term):
            del keys["loss"][term]
    if not stage.data.window:  # then it does not matter how the images are sharded
        del keys["data"]["window"]
    keys["init"] = before.get(stage.init) or _content(Path(stage.init)) or stage.init
    if stage.data.labels:
        keys["data"]["labels"] = before[stage.data.labels]
    model = recipe.model.model_dump(mode="json")
    for key in _NEWER:
        if model[key] == Model.model_fields[key].default:
            del model[key]
    if stage.use("nuisance") == "absent":  # else every variant would train an embedding of its own
        del model["nuisance"]
    return {
        "method": METHOD[stage.kind], "name": name, "seed": recipe.seed, "stage": keys, "model": model,
        "image": [data.image, data.mean, data.std, data.loader],
        "data": [entry for dataset in recipe.datasets(stage)
                 for entry in _data(data.root / dataset, bool(stage.data.window))],
    }


def _data(folder: Path | Url, sharded: bool) -> list[Sequence[Any]]:
    """Name and content of a dataset, or of each member of a merged set, with its share where it has a weight: of the
    set, so that two sets are told from one of all their members."""
    merged = Merged.open(folder) if is_merged(folder) else None
    weights = [member.weight or 0 for member in merged.members] if merged else [0]
    return [(index.name, index.fingerprint, *([weight / sum(weights)] if weight else []),
             *([hashlib.sha256(index.shard.tobytes()).hexdigest()] if sharded else []))
            for index, weight in zip(merged.indexes if merged else [Index.open(folder)], weights, strict=True)]


def _content(init: Path) -> str | None:
    """What weights from elsewhere hold: a file, or the export in a folder."""
    for file in (init, init / "model.safetensors", init / "export" / "model.safetensors"):
        if file.is_file():
            with file.open("rb") as stream:
                return hashlib.sha256(stream.read()).hexdigest()
    return None


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:24]
