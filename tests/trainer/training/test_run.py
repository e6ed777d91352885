"""A run's stages one after the other: what is told where one cannot go on from those before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_run
from helpers.run_parts import context

from embae.datasets.index.arrow_index import Index
from embae.datasets.sampling.pseudo_labels import write_labels
from embae.trainer.errors import RunError
from embae.trainer.recipe.load import check_recipe
from embae.trainer.runs.stage_data import open_sampler
from embae.trainer.runtime.distributed import World
from embae.trainer.training.run import run_stage


def test_a_batch_takes_no_more_clusters_than_there_are_and_one_is_reported_to_be_too_few(tmp_path: Path) -> None:
    parts = {"backbone": "frozen", "embedding": "frozen", "nuisance": "absent", "decoder": "absent"}
    stages: dict[str, Any] = {
        "group": {"init": "embedding", "parts": parts, "data": {"from": "target", "batch": 8},
                  "cluster": {"linkage": {}}},
        "adapt": {"init": "embedding", "parts": {**parts, "embedding": "train"}, "epochs": 1, "loss": {"triplet": {}},
                  "data": {"from": "target", "labels": "group", "P": 3, "K": 2}}}  # fmt: skip
    changes = {f"stages__{name}": stage for name, stage in stages.items()}
    recipe = check_recipe(tiny_run.tree(data__root=str(tiny_run.shards()), run=["embedding", "group", "adapt"],
                             evaluate={"Adapted": "adapt"}, **changes), "tiny")  # fmt: skip
    index, found = Index.open(tiny_run.shards() / "park"), tmp_path / "group" / "export"
    found.mkdir(parents=True)
    write_labels(found, index, "train", np.arange(index.count("train")) % 2)
    assert open_sampler(recipe, "adapt", tmp_path).batch == 4  # two clusters are all that there are
    write_labels(found, index, "train", np.zeros(index.count("train")))
    world = World(0, 0, 1, torch.device("cpu"))
    with pytest.raises(RunError, match=r"stage adapt, by the clusters of group: .*1 identities, but P is 3.*--out"):
        run_stage(context(recipe, tmp_path, world), "adapt", None)
