"""Writes checkpoints beside the training: the loop waits for copies of the tensors, not for the disk."""

from __future__ import annotations

import threading
from pathlib import Path

from torch import Tensor

from embae.trainer.errors import RunError
from embae.trainer.training import checkpoint


class CheckpointWriter:
    """Writes the checkpoints of a stage, one after the other; on the first rank alone.

    Args:
        stage: The stage's folder.
        keep: How many stay.
    """

    def __init__(self, stage: Path, keep: int):
        self._stage, self._keep = stage, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the last one could not be written."""
        return self._error is not None

    def save(self, meta: checkpoint.Meta, model: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Starts to write a checkpoint, after the one before is done.

        Args:
            meta: What it says of itself.
            model: The model's state on the CPU; it must not be changed from now on.
            moments: The optimizers' moments, likewise.

        Raises:
            RunError: The one before could not be written.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(meta, model, moments), name="checkpoint")
        self._thread.start()

    def _write(self, meta: checkpoint.Meta, model: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        try:
            checkpoint.write(checkpoint.place(self._stage, meta.step), meta, model, moments)
            checkpoint.keep(self._stage, self._keep)
        except Exception as error:  # raised by `wait`, in the thread that can end the run
            self._error = error

    def wait(self) -> None:
        """Waits until everything is on the disk.

        Raises:
            RunError: It could not be written.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            whole = checkpoint.list_checkpoints(self._stage)
            last = f"the last whole one is {whole[0]}" if whole else "there is none before it"
            raise RunError(f"a checkpoint could not be written: {self._error}; {last}. Make room; the same command "
                           "then resumes from there") from self._error
