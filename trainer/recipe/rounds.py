"""Stages that a run repeats, and settings that go with any recipe: recipes as they are written → plain stages.

    run: [classify, [cluster, retrain]]     stages in brackets are repeated,
    rounds: 2                               so often: classify, cluster-1, retrain-1, cluster-2, retrain-2
    stages:
      cluster: {init: classify, next_init: retrain, …}     from the second round on: retrain of the round before

Within a round, the name of one of its stages means that of the same round; `evaluate` means the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embae.trainer.recipe.mistakes import short

MOST_ROUNDS = 100


def expand(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Writes the rounds of a recipe out.

    Args:
        tree: A recipe as a plain tree, its defaults filled in.

    Returns:
        The recipe without rounds, and what is wrong with them.
    """
    tree = dict(tree)
    rounds, run, stages = tree.pop("rounds", 1), tree.get("run"), tree.get("stages")
    if not isinstance(run, list) or not isinstance(stages, dict) or not any(isinstance(name, list) for name in run):
        return tree, []
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 1 <= rounds <= MOST_ROUNDS:
        return tree, [f"rounds: found {short(rounds)}; wanted a whole number from 1 to {MOST_ROUNDS}"]
    repeated = [name for entry in run if isinstance(entry, list) for name in entry]
    wrong = [f"run: repeats {short(name)}; wanted the name of a stage" for name in repeated
             if not isinstance(name, str) or not isinstance(stages.get(name), dict)]
    if wrong:
        return tree, wrong
    plain = {name: stage for name, stage in stages.items() if name not in repeated}
    order: list[Any] = []
    for entry in run:
        if isinstance(entry, list):
            written = dict(_rounds(entry, stages, rounds))
            order += written
            plain |= written
        else:
            order.append(entry)
    tree |= {"run": order, "stages": plain}
    if isinstance(tree.get("evaluate"), dict):
        tree["evaluate"] = {row: f"{stage}-{rounds}" if stage in repeated else stage
                            for row, stage in tree["evaluate"].items()}
    return tree, []


def _rounds(names: list[str], stages: dict[str, Any], rounds: int) -> Iterator[tuple[str, Any]]:
    for number in range(1, rounds + 1):
        for name in names:
            stage = dict(stages[name])
            later = stage.pop("next_init", None)
            if number > 1 and later is not None:
                stage["init"] = _named(later, names, number - 1)
            elif isinstance(stage.get("init"), str):
                stage["init"] = _named(stage["init"], names, number)
            data = stage.get("data")
            if isinstance(data, dict) and isinstance(data.get("labels"), str):
                stage["data"] = {**data, "labels": _named(data["labels"], names, number)}
            yield f"{name}-{number}", stage


def _named(stage: Any, names: list[str], number: int) -> Any:
    return f"{stage}-{number}" if stage in names else stage
