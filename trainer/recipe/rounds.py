"""Rounds: stages that a run repeats. A recipe with rounds becomes one whose stages are all written out.

    run: [classify, [cluster, retrain]]     the stages in brackets are repeated;
    rounds: 2                               this often: classify, cluster-1, retrain-1, cluster-2, retrain-2
    stages:
      cluster: {init: classify, next_init: retrain, …}     from the second round: retrain of the previous round

Inside the brackets, the name of a repeated stage means the stage of the same round; in `evaluate` it means the stage of
the last round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embae.trainer.recipe.mistakes import show_value

MOST_ROUNDS = 100


def expand_rounds(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Writes out the rounds of a recipe.

    Args:
        tree: A recipe as a plain tree, its defaults filled in.

    Returns:
        The recipe without rounds, and the mistakes in them.
    """
    tree = dict(tree)
    rounds, run, stages = tree.pop("rounds", 1), tree.get("run"), tree.get("stages")
    if not isinstance(run, list) or not isinstance(stages, dict) or not any(isinstance(name, list) for name in run):
        return tree, []
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 1 <= rounds <= MOST_ROUNDS:
        return tree, [f"rounds: found {show_value(rounds)}; expected a whole number from 1 to {MOST_ROUNDS}"]
    repeated = [name for entry in run if isinstance(entry, list) for name in entry]
    mistakes = [f"run: repeats {show_value(name)}; expected the name of a stage" for name in repeated
                if not isinstance(name, str) or not isinstance(stages.get(name), dict)]
    if mistakes:
        return tree, mistakes
    plain_stages = {name: stage for name, stage in stages.items() if name not in repeated}
    plain_run: list[Any] = []
    for entry in run:
        if isinstance(entry, list):
            expanded = dict(_expand(entry, stages, rounds))
            plain_run += expanded
            plain_stages |= expanded
        else:
            plain_run.append(entry)
    tree |= {"run": plain_run, "stages": plain_stages}
    if isinstance(tree.get("evaluate"), dict):
        tree["evaluate"] = {row: f"{stage}-{rounds}" if stage in repeated else stage
                            for row, stage in tree["evaluate"].items()}
    return tree, []


def _expand(names: list[str], stages: dict[str, Any], rounds: int) -> Iterator[tuple[str, Any]]:
    for number in range(1, rounds + 1):
        for name in names:
            stage = dict(stages[name])
            later = stage.pop("next_init", None)
            if number > 1 and later is not None:
                stage["init"] = _in_round(later, names, number - 1)
            elif isinstance(stage.get("init"), str):
                stage["init"] = _in_round(stage["init"], names, number)
            data = stage.get("data")
            if isinstance(data, dict) and isinstance(data.get("labels"), str):
                stage["data"] = {**data, "labels": _in_round(data["labels"], names, number)}
            yield f"{name}-{number}", stage


def _in_round(stage: Any, names: list[str], number: int) -> Any:
    return f"{stage}-{number}" if stage in names else stage
