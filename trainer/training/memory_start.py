"""The start of a cluster memory: the means of embeddings."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F

from embae.datasets.sampling.plan import by_content
from embae.datasets.sampling.view import View
from embae.trainer.inference.embeddings import embedded
from embae.trainer.inference.options import Inference
from embae.trainer.losses.cluster_memory import ClusterMemory, persons
from embae.trainer.model.embae import EmbAE

BATCH = 256  # images to embed at a time
AT_ONCE = 256  # entries whose images are averaged at a time


def fill(memories: Collection[ClusterMemory], model: EmbAE, view: View, inference: Inference) -> None:
    """Makes each entry the mean of its images' unit embeddings, at unit length; the same bit for bit on any ranks.

    Args:
        memories: Of the view.
        model: The stage's initial model in eval mode, on the rank's device.
        view: The images.
        inference: How images go through the model.
    """
    order = by_content(view)  # the index's order knows pids, and rounding would tell
    known = np.zeros(len(view), bool)
    known[persons(view)] = True
    rows = order[known[order]]
    with embedded(model, view, inference, rows=rows) as found:
        for memory in memories:
            _average(memory, memory.entry(view, rows), found)


def _average(memory: ClusterMemory, entry: np.ndarray, found: np.ndarray) -> None:
    place = np.argsort(entry, kind="stable")
    starts = np.searchsorted(entry[place], np.arange(len(memory.entries) + 1))
    for first in range(0, len(memory.entries), AT_ONCE):
        bounds = starts[first:first + AT_ONCE + 1]
        z = found[place[bounds[0]:bounds[-1]]].astype(np.float64)
        sums = np.add.reduceat(z / np.linalg.norm(z, axis=1, keepdims=True).clip(1e-12), bounds[:-1] - bounds[0])
        memory.entries[first:first + AT_ONCE] = F.normalize(torch.from_numpy(sums)).to(memory.entries)
