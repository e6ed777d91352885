"""What a person sees of a running stage: console, TensorBoard, metrics.jsonl. Rank 0 alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from embae.datasets.files.atomic import write_atomically
from embae.datasets.loading.augment import ImageSpec


class Monitor:
    """Records of a run; does nothing on other ranks than the first.

    Args:
        run: The run folder.
        first: Whether this rank writes.
    """

    def __init__(self, run: Path, first: bool):
        self._first, self._run = first, run
        self._boards: dict[str, SummaryWriter] = {}
        if first:
            self._lines = self._open()

    def _open(self) -> TextIO:
        return (self._run / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def _board(self, stage: str, purge: int | None = None) -> SummaryWriter:
        if stage not in self._boards:
            self._boards[stage] = SummaryWriter(str(self._run / "tensorboard" / stage), purge_step=purge,
                                                flush_secs=10)
        return self._boards[stage]

    def set_back(self, stage: str, step: int) -> None:
        """Takes back what was recorded of a stage's later steps, which will be taken again.

        Scores of this very step too: a checkpoint is written before they are taken, and they are taken on the way on.

        Args:
            stage: The stage.
            step: Steps done where it goes on.
        """
        if not self._first:
            return
        self._board(stage, purge=step + 1)
        self._keep(lambda line: not _later(line, stage, step))

    def take_back(self, kind: str, stage: str, step: int) -> None:
        """Takes back a record that is made again, since an earlier start did not come to keep what it is of."""
        if self._first:
            self._keep(lambda line: not _is(line, kind, stage, step))

    def _keep(self, wanted: Callable[[bytes], bool]) -> None:
        self._lines.close()
        path = self._run / "metrics.jsonl"
        kept = [line for line in path.read_bytes().splitlines(keepends=True) if wanted(line)]
        write_atomically(path, lambda file: file.writelines(kept))
        self._lines = self._open()

    def say(self, text: str) -> None:
        """A line on the console."""
        if self._first:
            print(text, flush=True)

    def record(self, kind: str, stage: str, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and a TensorBoard curve for each number."""
        if self._first:
            self._lines.write(json.dumps({"kind": kind, "stage": stage, "step": step, **values}) + "\n")
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board(stage).add_scalar(f"{kind}/{name}", value, step)

    def keys(self, stage: str, tree: dict[str, Any]) -> None:
        """The keys that led to a stage's scores, beside these in TensorBoard's HParams.

        Args:
            stage: The stage.
            tree: Plain values, mappings within each other.
        """
        if self._first:
            plain = {path: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
                     for path, value in _paths(tree)}
            for summary in hparams(plain, dict.fromkeys(("eval/Rank-1", "eval/mAP"), 0.0)):  # names; values are curves
                self._board(stage)._get_file_writer().add_summary(summary)

    def images(self, stage: str, step: int, images: Tensor, spec: ImageSpec) -> None:
        """A grid of augmented inputs, as the model gets them."""
        if self._first:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
            self._board(stage).add_images("inputs", (images[:32].cpu() * std + mean).clamp(0, 1), step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._first:
            for board in self._boards.values():
                board.close()
            self._lines.close()


def _paths(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{above}{key}.")
        else:
            yield above + key, value


def _later(line: bytes, stage: str, step: int) -> bool:
    """Whether a line of metrics.jsonl is of a step that will be taken again; half a line is of no use either."""
    try:
        record = json.loads(line)
        return record["stage"] == stage and record["step"] >= step + (record["kind"] != "eval")
    except (ValueError, KeyError, TypeError, RecursionError):
        return True


def _is(line: bytes, *of: object) -> bool:
    try:
        record = json.loads(line)
        return of == (record["kind"], record["stage"], record["step"])
    except (ValueError, KeyError, TypeError):
        return True  # half a line
