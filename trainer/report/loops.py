"""Finds the stages of a run that are rounds of the same stage: [group-1, adapt-1, group-2, adapt-2] is two rounds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from embae.trainer.recipe.schema import Recipe


@dataclass(frozen=True)
class Loop:
    """Stages that a run repeats.

    Attributes:
        names: Without the numbers of the rounds, in order.
        rounds: How often, twice at least.
    """

    names: tuple[str, ...]
    rounds: int

    def stages(self, name: str) -> list[str]:
        """The names of a stage, one for each round."""
        return [f"{name}-{number}" for number in range(1, self.rounds + 1)]


def fold(recipe: Recipe) -> list[str | Loop]:
    """The stages of a run in order; rounds of the same stages become one `Loop`."""
    entries: list[str | Loop] = []
    run, at = recipe.run, 0
    while at < len(run):
        longest = next((end for end in range(at, len(run)) if not run[end].endswith("-1")), len(run))
        loops = (_loop(recipe, at, end) for end in range(longest, at, -1))
        loop = next((loop for loop in loops if loop), None)
        entries.append(loop or run[at])
        at += len(loop.names) * loop.rounds if loop else 1
    return entries


def unnumbered(stage: str) -> str:
    """A stage's name without the number of a round."""
    return re.sub(r"-\d+$", "", stage)


def _loop(recipe: Recipe, start: int, end: int) -> Loop | None:
    """The loop whose first round is the stages from `start` to `end`, if there is one."""
    names, rounds = tuple(stage.removesuffix("-1") for stage in recipe.run[start:end]), 1
    while _again(recipe, names, rounds + 1, start + rounds * len(names)):
        rounds += 1
    return Loop(names, rounds) if rounds > 1 else None


def _again(recipe: Recipe, names: tuple[str, ...], number: int, start: int) -> bool:
    """Whether another round follows: stages of the next number that do the same as those of the first."""
    expected = [f"{name}-{number}" for name in names]
    return recipe.run[start:start + len(names)] == expected and all(
        _does(recipe, f"{name}-1") == _does(recipe, stage) for name, stage in zip(names, expected, strict=True))


def _does(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The keys of a stage, without the origin of its model and the round of its pseudo-labels."""
    keys = recipe.stages[stage].model_dump(exclude={"init"})
    if keys["data"]["labels"]:
        keys["data"]["labels"] = unnumbered(keys["data"]["labels"])
    return keys
