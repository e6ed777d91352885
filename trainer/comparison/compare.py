"""``embae compare``: many recipes on one target, over seeds; stages that they share are trained once.

    <out>/runs/<recipe>-<seed>/         run folders as of embae train; their stages are links into
    <out>/stages/<name>-<key>/          every stage once, by what it depends on (`stage_key.py`)
    <out>/cache/                        backbone features, likewise
    <out>/comparison.json, .md, .png    the table
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embae.datasets.console.progress import note
from embae.datasets.files.atomic import write_text
from embae.datasets.files.json_files import read_json, write_json
from embae.datasets.index.arrow_index import Index
from embae.trainer.comparison.results import Comparison, Result, remarks, summarise, to_json
from embae.trainer.comparison.table import comparison_table
from embae.trainer.errors import RecipeError
from embae.trainer.recipe.load import load_recipe
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import Stage
from embae.trainer.runs.preflight import check_run
from embae.trainer.runs.run_datasets import can_score, draw_synthetic
from embae.trainer.runs.same_recipe import check_same_recipe
from embae.trainer.runs.score_table import are_numbers, are_scores
from embae.trainer.runs.stage_folder import read_cost
from embae.trainer.runs.stage_init import check_inits
from embae.trainer.runs.stage_key import stage_keys

ALL = ("baseline", "embae", "embae-fix", "embae-new", "embae-dataset", "embae-cam", "pul", "aae", "bn-target",
       "bn-camera", "features-camera", "centred-camera", "bn-camera-features", "bn-camera-embae-fix",
       "bn-camera-embae-cam", "bn-camera-autoencoder", "embae-narrow", "mixed-batches", "target-labels")
"""The paper's systems, the controls, what adaptation adds to the strongest of them, and the upper bound."""


@dataclass(frozen=True)
class Run:
    """One recipe with one seed, and its folder."""

    recipe: Recipe
    folder: Path


def plan(recipes: Sequence[str], overrides: Sequence[str], settings: Sequence[str], seeds: int, out: Path) -> list[Run]:
    """The runs of a comparison, seed by seed.

    Args:
        recipes: Names or files; none stands for `ALL`.
        overrides: For all of them.
        settings: For all of them.
        seeds: How many, from 0.
        out: The comparison's folder.

    Raises:
        RecipeError: A recipe is wrong, or the recipes cannot be compared.
    """
    runs = []
    for seed in range(seeds):
        for name in recipes or ALL:
            recipe = load_recipe(name, [*overrides, f"seed={seed}"], settings)
            runs.append(Run(recipe, out / "runs" / f"{recipe.name}-{seed}"))
    first = runs[0].recipe
    for run in runs:
        for key in ("target", "sources"):
            if getattr(run.recipe.data, key) != getattr(first.data, key):
                raise RecipeError(f"{run.recipe.name}: data.{key} is {getattr(run.recipe.data, key)}, of {first.name} "
                                  f"{getattr(first.data, key)}; compare on one target and one set of sources")
        if not run.recipe.evaluate:
            raise RecipeError(f"{run.recipe.name}: evaluate names no row; a comparison needs at least one")
        for key in ("tta", "rerank", "expand"):
            if getattr(run.recipe.scoring, key) != getattr(first.scoring, key):
                raise RecipeError(f"{run.recipe.name}: scoring.{key} is {getattr(run.recipe.scoring, key)}, of "
                                  f"{first.name} {getattr(first.scoring, key)}; compare recipes with the same scoring")
    folders = [run.folder for run in runs]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise RecipeError(f"two recipes have the name {twice.name.rpartition('-')[0]}; give them different names")
    return runs


def prepare(runs: Sequence[Run], ranks: int) -> None:
    """Checks recipes, data and folders before any rank starts; draws synthetic datasets.

    Raises:
        RecipeError: A run folder has another recipe's run, or the target has nothing to score.
        DataError, WeightsError: As of `check_run`.
    """
    for run in runs:
        check_same_recipe(run.folder, run.recipe)
        check_inits(run.recipe)
    seen: list[Recipe] = []
    for run in runs:
        alike = run.recipe.model_copy(update={"seed": 0, "name": ""})
        if alike not in seen:  # seeds differ in nothing that is checked
            seen.append(alike)
            draw_synthetic(run.recipe)
            check_run(run.recipe, ranks)
    data = runs[0].recipe.data
    if not can_score(Index.open(data.root / data.target)):
        raise RecipeError(f"{data.root / data.target}: has nothing to score; a comparison needs a target with labelled "
                          "query and gallery")


def share_stages(run: Run, out: Path) -> None:
    """Links the stages of a run to the folder that all runs of the comparison share."""
    run.folder.mkdir(parents=True, exist_ok=True)
    _link(run.folder / "cache", out / "cache")
    for name, key in stage_keys(run.recipe).items():
        _link(run.folder / name, out / "stages" / f"{name}-{key}")


def own_stages(run: Run) -> None:
    """Removes the links of an earlier comparison, so that a run trains its own stages."""
    for name in ("cache", *run.recipe.run):
        if (run.folder / name).is_symlink():
            (run.folder / name).unlink()


def _link(place: Path, shared: Path) -> None:
    target = os.path.relpath(shared, place.parent)
    if place.is_symlink():
        if os.readlink(place) != target:
            place.unlink()  # the data changed, or the method
    elif place.is_dir():
        return  # of a comparison with --fresh: a run keeps the stages that it trained itself
    shared.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(target)


def results(run: Run) -> list[Result]:
    """The rows of a finished run.

    Raises:
        RecipeError: It has no scores.
    """
    recipe, folder = run.recipe, run.folder / "evaluation"
    scores = _measured(folder / f"{recipe.data.target}.json", run)
    probes = _measured(folder / f"{recipe.data.target}-probes.json", run)
    rows = scores.get("rows")
    for row in recipe.evaluate:
        if not isinstance(rows, dict) or not are_scores(rows.get(row)):
            raise RecipeError(f"{folder / recipe.data.target}.json: has no scores of {row}; {_AGAIN}")
        if row in probes and not are_numbers(probes[row]):
            raise RecipeError(f"{folder / recipe.data.target}-probes.json: {row} has other values than numbers; "
                              f"{_AGAIN}")
    results = []
    for row, stage in recipe.evaluate.items():
        line, start = recipe.lineage(stage), recipe.start(row)
        before = recipe.lineage(recipe.evaluate[start]) if start else []
        costs = {name: read_cost(run.folder, name) for name in line}
        added = [name for name in line if name not in before]
        results.append(Result(
            recipe=recipe.name, row=row, seed=recipe.seed, start=start, scores=scores["rows"][row],
            probes=probes.get(row),
            trained=not recipe.stages[stage].calibrate or any(_on_target(recipe.stages[name]) for name in added),
            seconds=sum(cost.rank_seconds for cost in costs.values()),
            adaptation=sum(costs[name].rank_seconds for name in added) if start else 0.0,
            images=sum(cost.images for cost in costs.values())))
    return results


_AGAIN = "remove it, and the same command measures it again"


def _measured(path: Path, run: Run) -> dict[str, Any]:
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
    except FileNotFoundError:
        raise RecipeError(f"{run.folder}: has no scores of {run.recipe.data.target}; a comparison needs a target with "
                          "labelled query and gallery") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    return content


def report(runs: Sequence[Run], out: Path, probes: bool) -> str:
    """Writes the comparison as JSON, Markdown and PNG; returns its table as text."""
    from embae.trainer.comparison.plot import plot_comparison
    first = runs[0].recipe
    all_results = [result for run in runs for result in results(run)]
    comparison = Comparison(first.data.target, tuple(first.data.sources), first.scoring.tta, tuple(all_results),
                            first.scoring.rerank, first.scoring.expand)
    remark_lines = "".join(f"\n- {line}" for line in remarks(summarise(comparison.results)))
    write_json(out / "comparison.json", to_json(comparison))
    write_text(out / "comparison.md", f"{comparison_table(comparison, markdown=True, probes=True)}\n{remark_lines}\n")
    plot_comparison(comparison, out / "comparison.png")
    note(f"{out / 'comparison.md'}, .json, .png")
    return comparison_table(comparison, probes=probes) + remark_lines


def _on_target(stage: Stage) -> bool:
    return stage.loss is not None and stage.data.from_ != "sources"
