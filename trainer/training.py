"""A whole run: its stages in order, then the table of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.trainer import runfolder
from embae.trainer.distributed import World, broadcast_object
from embae.trainer.errors import RunError
from embae.trainer.evaluate import Evaluation, Reading, evaluate, write_embeddings
from embae.trainer.export import Export
from embae.trainer.monitor import Monitor
from embae.trainer.parts import EmbAE
from embae.trainer.preflight import can_score, open_stage
from embae.trainer.schema import Recipe
from embae.trainer.stage import StageRun, spec_of
from embae.trainer.table import SHOWN, score_table, write_scores


def train(recipe: Recipe, run: Path, world: World, last: str | None = None) -> None:
    """Runs every stage that is not done, then scores the target.

    Args:
        recipe: Checked.
        run: The run folder.
        world: This rank.
        last: Stop after this stage, without scoring.

    Raises:
        RecipeError: Another run holds the folder, or one of another recipe lies there.
    """
    held = _first_rank(world, lambda: _take(run, recipe, world))
    monitor = Monitor(run, world.first)
    try:
        target = Index.open(recipe.data.root / recipe.data.target)
        for name in recipe.run:
            if runfolder.is_done(run, name):
                monitor.say(f"[{name}] done before, {runfolder.steps_done(run, name)} steps")
            else:
                _stage(recipe, name, run, world, monitor, target)
            if name == last:
                return
        try:
            _score(recipe, run, world, monitor, target)
        except (DataError, FloatingPointError) as error:
            raise RunError(str(error)) from error
    finally:
        monitor.close()
        if held:
            held.close()


def _take(run: Path, recipe: Recipe, world: World) -> Any:
    held = runfolder.lock(run)
    runfolder.check_same(run, recipe)
    runfolder.write_recipe(run, recipe, world.world_size)
    return held


def _first_rank(world: World, act: Any) -> Any:
    """What rank 0 does alone; its error is every rank's."""
    result, error = None, None
    if world.first:
        try:
            result = act()
        except Exception as caught:  # handed on to the other ranks, which would wait for ever
            error = caught
    failed = broadcast_object(str(error) if error else None)
    if error:
        raise error
    if failed:
        raise SystemExit(2)
    return result


def _stage(recipe: Recipe, name: str, run: Path, world: World, monitor: Monitor, target: Index) -> None:
    stage = StageRun(recipe, name, open_stage(recipe, name), run, world, monitor)
    plan = stage.sampler
    monitor.say(f"[{name}] {stage.stop} steps of {plan.batch} images from {', '.join(plan.view.names)} "
                f"({plan.images:,} images), trains {', '.join(stage.keys.trained())}, loader {stage.loader.name}")
    every = stage.keys.evaluate_every
    try:
        for step in stage.train():
            if every and step % every == 0 and step < stage.stop and can_score(target):
                _evaluate(recipe, stage.snapshot(), name, step, world, monitor, target)
    except (DataError, FloatingPointError) as error:
        raise RunError(str(error)) from error
    stage.export()
    stage.close()


def _evaluate(recipe: Recipe, model: EmbAE, stage: str, step: int, world: World, monitor: Monitor,
              target: Index) -> Evaluation:
    """Scores a model on the target, and records it."""
    reading = Reading(recipe.data.loader, recipe.data.threads, recipe.scoring.batch)
    found = evaluate(model, target, spec_of(recipe), recipe.scoring.tta, world, reading)
    monitor.record("eval", stage, step, {"dataset": target.name, **found.scores})
    said = "  ".join(f"{key} {found.scores[key]:.3f}" for key in SHOWN)
    monitor.say(f"[{stage}] step {step}  {target.name}: {said}")
    return found


def _score(recipe: Recipe, run: Path, world: World, monitor: Monitor, target: Index) -> None:
    if not recipe.evaluate:
        return
    if not can_score(target):
        monitor.say(f"{target.name} has no labelled query and gallery, so there is nothing to score. "
                    f"The model is in {run / recipe.run[-1] / 'export'}")
        return
    rows = {}
    for row, stage in recipe.evaluate.items():
        model = Export.open(run / stage / "export").restore().to(world.device)
        found = _evaluate(recipe, model, stage, runfolder.steps_done(run, stage), world, monitor, target)
        rows[row] = found.scores
        if world.first:
            write_embeddings(run / "evaluation" / f"{target.name}-{stage}.npz", found)
    if world.first:
        write_scores(run / "evaluation" / f"{target.name}.json", target.name, recipe.scoring.tta, rows)
    monitor.say("\n" + score_table(target.name, recipe.scoring.tta, rows))
    dist.barrier()
