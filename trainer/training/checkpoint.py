"""A stage's state after some of its steps, on disk; it does not depend on the world size.

    <stage>/checkpoints/step-000500/
      state.safetensors      the model's whole state (model/…), the optimizers' moments (optimizer/…), as full tensors
      checkpoint.json        stage, step, and what the stage took so far
      complete               size and checksum of both; written last, before the folder gets its name

Everything else that a step depends on (batch, augmentation, learning rate) is a function of the step. Nothing in it can
run code.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from embae.datasets.console.progress import note
from embae.datasets.files.atomic import atomic_folder
from embae.datasets.files.json_files import read_json, write_json
from embae.datasets.files.plain import open_plain
from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.model.saved import read_weights, save_weights

FORMAT = 1
FOLDER, STATE, META, MARK = "checkpoints", "state.safetensors", "checkpoint.json", "complete"
_NAME = re.compile(r"step-(\d{6,12})")


@dataclass(frozen=True)
class Meta:
    """The description of a checkpoint.

    Attributes:
        stage: The stage's name.
        step: Steps done.
        rank_seconds: Wall time × ranks so far, over all starts.
        world_size: Ranks that wrote it; any number may resume.
        best: The best scores on the target so far and their step; empty without evaluation during training.
    """

    stage: str
    step: int
    rank_seconds: float
    world_size: int
    best: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    meta: Meta

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Reads and checks a checkpoint, every byte of it.

        Raises:
            WeightsError: It is not there, not whole or damaged.
            RecipeError: Another version of embae wrote it.
        """
        expected_sums = _read_json(path / MARK)
        for name in (STATE, META):
            expected = expected_sums.get(name)
            try:
                actual = checksum(path / name, expected)
            except OSError as error:
                raise WeightsError(f"{path / name}: cannot be read ({error.strerror})") from error
            if actual != expected:
                raise WeightsError(f"{path / name}: damaged; found {actual}, expected {expected}")
        meta = _read_json(path / META)
        if meta.pop("format", None) != FORMAT:
            # Not as of a damaged one: those are passed over, and removed on the way.
            raise RecipeError(f"{path / META}: not of format {FORMAT}; another version of embae wrote it: resume with "
                              "that version, or choose another folder with --out")
        return cls(path, _meta(meta, path / META))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's state and the optimizers' moments, on the CPU.

        Raises:
            WeightsError: It was removed or damaged since.
        """
        tensors = read_weights(self.path / STATE)
        return _below("model/", tensors), _below("optimizer/", tensors)

    def adopt(self, stage: Path) -> None:
        """Copies it to a stage as its newest checkpoint, and removes those of later steps."""
        to = place(stage, self.meta.step)
        if to.resolve() != self.path.resolve():
            with atomic_folder(to) as partial:
                for name in (STATE, META, MARK):
                    shutil.copyfile(self.path / name, partial / name)
        set_back(stage, self.meta.step)


def write(path: Path, meta: Meta, model: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
    """Writes a checkpoint to a temporary folder, flushes it to disk and renames it.

    Args:
        path: The folder to make; an older one is replaced.
        meta: What it says of itself.
        model: The model's state, on the CPU; nothing may change it meanwhile.
        moments: The optimizers' moments, likewise.

    Raises:
        OSError: The disk is full, for one; what was there before is as it was.
    """
    with atomic_folder(path) as partial:
        state = {f"model/{key}": value for key, value in model.items()}
        state |= {f"optimizer/{key}": value for key, value in moments.items()}
        save_weights(state, partial / STATE)
        write_json(partial / META, {"format": FORMAT, **asdict(meta)})
        sums = {name: checksum(partial / name) for name in (STATE, META)}
        write_json(partial / MARK, sums)


def list_checkpoints(stage: Path) -> list[Path]:
    """Checkpoints of a stage, whole or not, the newest first."""
    folder = stage / FOLDER
    if not folder.is_dir():
        return []
    steps = {int(name[1]): path for path in folder.iterdir() if (name := _NAME.fullmatch(path.name))}
    return [steps[step] for step in sorted(steps, reverse=True)]


def newest(stage: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a stage; says which newer ones are damaged, and passes over them.

    Raises:
        RecipeError: Another version of embae wrote it.
    """
    for path in list_checkpoints(stage):
        try:
            return Checkpoint.open(path)
        except WeightsError as error:
            note(f"{error}; going back to the checkpoint before it")
    return None


def place(stage: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return stage / FOLDER / f"step-{step:06}"


def keep(stage: Path, count: int) -> None:
    """Removes all but the newest."""
    for old in list_checkpoints(stage)[count:]:
        shutil.rmtree(old)


def set_back(stage: Path, step: int) -> None:
    """Removes checkpoints of later steps, which will be taken again, and those that were never complete."""
    for later in list_checkpoints(stage):
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    for half in (stage / FOLDER).glob("step-*.partial"):
        shutil.rmtree(half)


def checksum(path: Path, expected: Any = None) -> dict[str, Any]:
    """Size and checksum of a file; the size alone if it is not the expected one."""
    digest, size = hashlib.blake2b(), 0
    with open_plain(path) as file:
        length = os.fstat(file.fileno()).st_size
        if isinstance(expected, dict) and expected.get("bytes") != length:
            return {"bytes": length}
        while chunk := file.read(2**20):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "blake2b": digest.hexdigest()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = read_json(path)
        if not isinstance(tree, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not of a whole checkpoint ({error})") from error
    return tree


def _meta(tree: dict[str, Any], path: Path) -> Meta:
    kinds: dict[str, tuple[type, ...]] = {"stage": (str,), "step": (int,), "rank_seconds": (int, float),
                                          "world_size": (int,), "best": (dict,)}
    wrong = [key for key in kinds.keys() | tree.keys() if type(tree.get(key)) not in kinds.get(key, ())]
    if wrong or tree["step"] < 0:
        raise WeightsError(
            f"{path}: not the description of a checkpoint (look at {', '.join(sorted(wrong)) or 'step'})"
        )
    return Meta(**tree)


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

