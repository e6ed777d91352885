"""The folder of a finished stage: its export, written completely or not at all, and the mark that it is done.

    <stage>/export/      a model, or pseudo-labels
    <stage>/done         JSON, written last: steps, images seen, seconds that ranks were busy
    <stage>/evaluation/  scores, see `evaluation/score_run.py`
    <stage>/checkpoints/ where an unfinished stage resumes, see `training/checkpoint.py`
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from embae.datasets.files.atomic import atomic_folder
from embae.datasets.files.json_files import read_json, write_json
from embae.trainer.errors import RecipeError

EXPORT, MARK = "export", "done"


@dataclass(frozen=True)
class StageCost:
    """What a finished stage cost.

    Attributes:
        steps: Optimizer updates.
        images: Images of all global batches.
        rank_seconds: Wall time × ranks. Includes the extraction of cached features, even if another stage did it.
    """

    steps: int
    images: int
    rank_seconds: float


def is_done(run: Path, stage: str) -> bool:
    """Whether a stage has finished and exported its result."""
    return (run / stage / MARK).exists()


def read_cost(run: Path, stage: str) -> StageCost:
    """Reads what a finished stage cost.

    Raises:
        RecipeError: Its mark is damaged.
    """
    path = run / stage / MARK
    try:
        tree = read_json(path)
        if not isinstance(tree, dict):
            raise ValueError("not a mapping")
        cost = StageCost(**{field.name: tree[field.name] for field in fields(StageCost)})
        if not (type(cost.steps) is int and type(cost.images) is int and type(cost.rank_seconds) in (int, float)
                and cost.steps >= 0 and cost.images >= 0 and 0 <= cost.rank_seconds < math.inf):
            raise ValueError("expected counts of steps and images, and rank_seconds")
    except (OSError, KeyError, ValueError) as error:
        raise RecipeError(f"{path}: does not say what the stage took ({error}); remove it and run the same command "
                          "again to repeat this stage") from error
    return cost


@contextmanager
def finish_stage(stage: Path, cost: StageCost) -> Iterator[Path]:
    """Gives a temporary folder to fill, renames it to the stage's export, and marks the stage as done."""
    stage.mkdir(parents=True, exist_ok=True)
    for old in (stage / EXPORT, stage / "evaluation"):  # left by an earlier start that did not finish
        shutil.rmtree(old, ignore_errors=True)
    with atomic_folder(stage / EXPORT) as partial:
        yield partial
    write_json(stage / MARK, asdict(cost), indent=None)
