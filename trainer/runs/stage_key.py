"""The key of a stage: a digest of everything its result depends on, by which recipes share equal stages.

In the key: the stage as resolved, the stages that it starts from, seed, name, data by content, weights it starts from,
and `METHOD`. Not in it: world size, threads, what is logged and when.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embae.datasets.index.arrow_index import Index
from embae.datasets.index.merged import Merged, is_merged
from embae.datasets.remote.url import Url
from embae.trainer.recipe.model import Model
from embae.trainer.recipe.schema import Recipe

METHOD = {"loss": 1, "calibrate": 2, "cluster": 1}
"""Version of the computation by kind of stage; raise one when the same recipe comes to mean another computation.
Calibration 2 mixes with shared statistics."""

_NEWER_MODEL_KEYS = ("pooling", "last_stride", "head", "unit")
"""Left out at their defaults: they are newer than some comparisons, whose keys must not change."""
_FIRST_TERMS = {"triplet", "identity", "reconstruction", "adversarial"}
"""Loss terms in the key of every stage, null where absent. A newer term is only in the keys of stages that name it."""
_NO_EFFECT = {"log_every", "evaluate_every"}


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """The key of each stage of a run, in the run's order: 24 hexadecimal digits.

    Raises:
        DataError: A dataset cannot be opened.
    """
    keys: dict[str, str] = {}
    for name in recipe.run:
        keys[name] = _digest(key_content(recipe, name, keys))
    return keys


def key_content(recipe: Recipe, name: str, before: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a stage's result depends on, as plain values.

    Args:
        recipe: Checked.
        name: The stage.
        before: The keys of the stages before it.
    """
    stage, data = recipe.stages[name], recipe.data
    config = stage.model_dump(mode="json", by_alias=True, exclude=_NO_EFFECT)
    # What is newer than some comparisons is left out where it is not used, so that their keys do not change.
    if not stage.ema:
        del config["ema"]
    if stage.loss:
        config["loss"] = {term: keys for term, keys in config["loss"].items() if keys or term in _FIRST_TERMS}
    if not stage.data.window:  # then it does not matter how the images are sharded
        del config["data"]["window"]
    config["init"] = before.get(stage.init) or _weights_digest(Path(stage.init)) or stage.init
    if stage.data.labels:
        config["data"]["labels"] = before[stage.data.labels]
    model = recipe.model.model_dump(mode="json")
    for key in _NEWER_MODEL_KEYS:
        if model[key] == Model.model_fields[key].default:
            del model[key]
    if stage.use("nuisance") == "absent":  # else every variant would train an embedding of its own
        del model["nuisance"]
    return {
        "method": METHOD[stage.kind], "name": name, "seed": recipe.seed, "stage": config, "model": model,
        "image": [data.image, data.mean, data.std, data.loader],
        "data": [entry for dataset in recipe.datasets(stage)
                 for entry in _data_content(data.root / dataset, bool(stage.data.window))],
    }


def _data_content(folder: Path | Url, sharded: bool) -> list[Sequence[Any]]:
    """Name and content of a dataset, or of each member of a merged set, with its share if the set has weights.

    The share is relative to its set, so that two sets differ from one set of all their members.
    """
    merged = Merged.open(folder) if is_merged(folder) else None
    weights = [member.weight or 0 for member in merged.members] if merged else [0]
    return [(index.name, index.fingerprint, *([weight / sum(weights)] if weight else []),
             *([hashlib.sha256(index.shard.tobytes()).hexdigest()] if sharded else []))
            for index, weight in zip(merged.indexes if merged else [Index.open(folder)], weights, strict=True)]


def _weights_digest(init: Path) -> str | None:
    """Digest of weights that no stage of this run computes: a file, or the export in a folder."""
    for file in (init, init / "model.safetensors", init / "export" / "model.safetensors"):
        if file.is_file():
            with file.open("rb") as stream:
                return hashlib.sha256(stream.read()).hexdigest()
    return None


def _digest(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:24]
