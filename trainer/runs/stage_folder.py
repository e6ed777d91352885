"""What a stage leaves behind: its export, written whole or not at all, and the mark that it is done.

    <stage>/export/     a model, or pseudo-labels
    <stage>/done        JSON, written last: steps, images seen, seconds that ranks were busy
    <stage>/evaluation/ scores, see `scoring.py`
    <stage>/checkpoints/ what it goes on from while it is not done, see `checkpoint.py`
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
class Done:
    """What a finished stage took.

    Attributes:
        steps: Optimizer updates.
        images: Images of all global batches.
        rank_seconds: Wall time × ranks, the extraction of cached features included even where another stage did it.
    """

    steps: int
    images: int
    rank_seconds: float


def is_done(run: Path, stage: str) -> bool:
    """Whether a stage has ended with an export."""
    return (run / stage / MARK).exists()


def done(run: Path, stage: str) -> Done:
    """What a finished stage took.

    Raises:
        RecipeError: Its mark is damaged.
    """
    path = run / stage / MARK
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError("not a mapping")
        took = Done(**{field.name: found[field.name] for field in fields(Done)})
        if not (type(took.steps) is int and type(took.images) is int and type(took.rank_seconds) in (int, float)
                and took.steps >= 0 and took.images >= 0 and 0 <= took.rank_seconds < math.inf):
            raise ValueError("wanted counts of steps and images, and rank_seconds")
    except (OSError, KeyError, ValueError) as error:
        raise RecipeError(f"{path}: does not say what the stage took ({error}); remove it, and the same command does "
                          "this stage again") from error
    return took


@contextmanager
def finish(stage: Path, took: Done) -> Iterator[Path]:
    """Gives a temporary folder to fill, makes it the stage's export when it is whole, and marks the stage done."""
    stage.mkdir(parents=True, exist_ok=True)
    for old in (stage / EXPORT, stage / "evaluation"):  # of a stage that was not done
        shutil.rmtree(old, ignore_errors=True)
    with atomic_folder(stage / EXPORT) as partial:
        yield partial
    write_json(stage / MARK, asdict(took), indent=None)

