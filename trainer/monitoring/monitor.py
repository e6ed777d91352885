"""What a person sees of a running stage: console, metrics.jsonl and TensorBoard. Only the first rank writes."""

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
from embae.datasets.loading.image_spec import ImageSpec

_METRICS = "metrics.jsonl"


class Monitor:
    """The records of a run. Every method does nothing where there is no file to write to, as on all ranks but one.

    Args:
        run: The run folder.
        metrics: The open ``metrics.jsonl``; None on ranks that write nothing. `open` opens it.
    """

    def __init__(self, run: Path, metrics: TextIO | None):
        self._run, self._metrics = run, metrics
        self._boards: dict[str, SummaryWriter] = {}

    @classmethod
    def open(cls, run: Path, first: bool) -> Monitor:
        """Opens the records of a run, to append to them.

        Args:
            run: The run folder.
            first: Whether this rank writes.
        """
        return cls(run, _open_metrics(run) if first else None)

    def _board(self, stage: str, purge: int | None = None) -> SummaryWriter:
        if stage not in self._boards:
            self._boards[stage] = SummaryWriter(str(self._run / "tensorboard" / stage), purge_step=purge,
                                                flush_secs=10)
        return self._boards[stage]

    def drop_later(self, stage: str, step: int) -> None:
        """Removes the records of a stage's later steps, which will be repeated.

        Also removes the scores of this very step: a checkpoint is written before its model is scored, and a resumed
        run scores it again.

        Args:
            stage: The stage.
            step: Steps done where the stage resumes.
        """
        if self._metrics:
            self._board(stage, purge=step + 1)
            self._filter(lambda line: not _is_later(line, stage, step))

    def drop_record(self, kind: str, stage: str, step: int) -> None:
        """Removes a record that will be written again: an earlier start was stopped before it saved the scores."""
        if self._metrics:
            self._filter(lambda line: not _is_record(line, kind, stage, step))

    def _filter(self, keep: Callable[[bytes], bool]) -> None:
        assert self._metrics is not None
        self._metrics.close()
        path = self._run / _METRICS
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if keep(line)]
        write_atomically(path, lambda file: file.writelines(lines))
        self._metrics = _open_metrics(self._run)

    def say(self, text: str) -> None:
        """Prints a line on the console."""
        if self._metrics:
            print(text, flush=True)

    def record(self, kind: str, stage: str, step: int, values: dict[str, Any]) -> None:
        """Writes one line of metrics.jsonl, and a point of a TensorBoard curve for each number."""
        if self._metrics:
            self._metrics.write(json.dumps({"kind": kind, "stage": stage, "step": step, **values}) + "\n")
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board(stage).add_scalar(f"{kind}/{name}", value, step)

    def record_settings(self, stage: str, tree: dict[str, Any]) -> None:
        """Shows the recipe keys that led to a stage's scores next to these in TensorBoard's HParams.

        Args:
            stage: The stage.
            tree: Plain values in nested mappings.
        """
        if self._metrics:
            plain = {path: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
                     for path, value in _flatten(tree)}
            scores = dict.fromkeys(("eval/Rank-1", "eval/mAP"), 0.0)  # names only; the values are curves
            for summary in hparams(plain, scores):
                self._board(stage)._get_file_writer().add_summary(summary)

    def record_images(self, stage: str, step: int, images: Tensor, spec: ImageSpec) -> None:
        """Shows a grid of augmented inputs, as the model gets them."""
        if self._metrics:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
            self._board(stage).add_images("inputs", (images[:32].cpu() * std + mean).clamp(0, 1), step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._metrics:
            for board in self._boards.values():
                board.close()
            self._metrics.close()


def _open_metrics(run: Path) -> TextIO:
    return (run / _METRICS).open("a", encoding="utf-8", buffering=1)


def _flatten(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{above}{key}.")
        else:
            yield above + key, value


def _is_later(line: bytes, stage: str, step: int) -> bool:
    """Whether a line of metrics.jsonl belongs to a step that will be repeated. So does a line that was cut short."""
    try:
        record = json.loads(line)
        return record["stage"] == stage and record["step"] >= step + (record["kind"] != "eval")
    except (ValueError, KeyError, TypeError, RecursionError):
        return True


def _is_record(line: bytes, *identity: object) -> bool:
    """Whether a line of metrics.jsonl is the record with this kind, stage and step, or was cut short."""
    try:
        record = json.loads(line)
        return identity == (record["kind"], record["stage"], record["step"])
    except (ValueError, KeyError, TypeError):
        return True
