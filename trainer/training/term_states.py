"""Computes the states of a stage's loss terms at its start, from embeddings of its images."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from embae.datasets.sampling.content_order import order_by_content
from embae.datasets.sampling.view import View, labelled_rows
from embae.trainer.inference.embeddings import embedded
from embae.trainer.inference.options import Inference
from embae.trainer.losses.term import TermState
from embae.trainer.model.embae import EmbAE

BATCH = 256  # images to embed at a time


def start_states(states: Collection[TermState], model: EmbAE, view: View, inference: Inference) -> None:
    """Starts states from embeddings of the images; the same bit for bit on any number of ranks.

    Args:
        states: Those of the view.
        model: The stage's initial model in eval mode, on the rank's device.
        view: The images.
        inference: How images go through the model.
    """
    order = order_by_content(view)  # the order of the index depends on pids, which would change how sums round
    labelled = np.zeros(len(view), bool)
    labelled[labelled_rows(view)] = True
    rows = order[labelled[order]]
    with embedded(model, view, inference, rows=rows) as embeddings:
        for state in states:
            state.start(view, rows, embeddings)
