"""A whole run: its stages in order, then the table of scores."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.files.atomic import write_text
from embae.datasets.index.arrow_index import Index
from embae.trainer.errors import RunError, WeightsError
from embae.trainer.evaluation.score_run import score_model, score_run
from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.monitoring.step_phases import profiled
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs import folder as runfolder
from embae.trainer.runs.stage_data import can_score, open_stage, scores_target
from embae.trainer.runs.stage_folder import done, is_done
from embae.trainer.runtime.distributed import World, broadcast_object, on_first_rank
from embae.trainer.runtime.signals import stopping, unmark
from embae.trainer.runtime.watchdog import watch
from embae.trainer.training.calibrate_stage import run_calibrate_stage
from embae.trainer.training.checkpoint import Checkpoint, newest
from embae.trainer.training.cluster_stage import run_cluster_stage
from embae.trainer.training.stage import StageRun


def train(recipe: Recipe, run: Path, world: World, last: str | None = None, resume: Path | None = None,
          profile: bool = False) -> None:
    """Runs every stage that is not done, then scores the target.

    Args:
        recipe: Checked.
        run: The run folder.
        world: This rank.
        last: Stop after this stage, without scoring.
        resume: The checkpoint that its stage goes on from; by default each stage goes on from its newest whole one.
        profile: Leave a trace of a few steps of each stage beside its curves in TensorBoard, of rank 0.

    Raises:
        RecipeError: Another run holds the folder, or one of another recipe lies there.
        ExportError: There is no whole checkpoint at `resume`, or of a stage that is done.
        Stopped: A signal asked for it.
    """
    stopping.of(run)
    held = on_first_rank(world, lambda: _take(run, recipe, world, resume))
    monitor = Monitor(run, world.first)
    try:
        target = Index.open(recipe.data.root / recipe.data.target) if scores_target(recipe) else None
        for name in recipe.run:
            if is_done(run, name):
                monitor.say(f"[{name}] done before, {done(run, name).steps} steps")
            else:
                _stage(recipe, name, run, world, monitor, target, profile and world.first)
            if name == last:
                return
        try:
            if target is not None:
                score_run(recipe, run, world, monitor, target)
        except (DataError, FloatingPointError) as error:
            raise RunError(str(error)) from error
    finally:
        monitor.close()
        if held:
            held.close()


def _take(run: Path, recipe: Recipe, world: World, resume: Path | None) -> Any:
    held = runfolder.lock(run)
    try:
        runfolder.check_same(run, recipe)
        if resume:
            _adopt(resume, recipe, run)
        runfolder.write_recipe(run, recipe, world.world_size)
        unmark(run)
    except BaseException:
        held.close()
        raise
    return held


def _adopt(path: Path, recipe: Recipe, run: Path) -> None:
    """Makes a checkpoint the newest of its stage: once, so that the same command goes on from later ones."""
    mark = run / "resumed"
    if mark.exists() and mark.read_text(encoding="utf-8") == str(path.resolve()):
        note(f"{run}: has gone on from {path} before, and goes on from its newest checkpoint; remove {mark} to go back")
        return
    asked = Checkpoint.open(path)
    stage = asked.meta.stage
    if stage not in recipe.run:
        raise WeightsError(f"{path}: is of stage {stage}, and run lists {', '.join(recipe.run)}")
    if is_done(run, stage):
        raise WeightsError(f"{path}: stage {stage} is done in {run}; leave --resume out to go on with the stages after "
                          "it, or take another folder with --out")
    asked.adopt(run / stage)
    write_text(mark, str(path.resolve()))


def _stage(recipe: Recipe, name: str, run: Path, world: World, monitor: Monitor, target: Index | None,
           profile: bool) -> None:
    if recipe.stages[name].calibrate:
        run_calibrate_stage(recipe, name, run, world, monitor)
        return
    if recipe.stages[name].cluster:
        run_cluster_stage(recipe, name, run, world, monitor)
        return
    try:
        plan = open_stage(recipe, name, run)
    except DataError as error:
        if not (labels := recipe.stages[name].data.labels):
            raise
        # Nothing was wrong with what the run was given.
        raise RunError(f"stage {name}, by the clusters of {labels}: {error} With another P, or other keys of {labels}, "
                       "it is another recipe, which takes another folder: --out") from error
    checkpoint = broadcast_object(on_first_rank(world, lambda: newest(run / name)))
    stage = StageRun(recipe, name, plan, run, world, monitor, checkpoint)
    if checkpoint:
        monitor.say(f"[{name}] goes on after step {stage.start}, from {checkpoint.path}")
    monitor.say(f"[{name}] {stage.stop} steps of {plan.batch} images from {', '.join(plan.view.names)} "
                f"({plan.images:,} images), trains {', '.join(stage.keys.trained())}, loader {stage.loader.name}")
    every = stage.keys.evaluate_every
    recorded = profiled(stage, run / "tensorboard" / name) if profile else nullcontext(lambda: None)
    try:
        with recorded as seen:
            for step in stage.train():
                seen()
                if every and target is not None and step % every == 0 and step < stage.stop and can_score(target):
                    stage.keeper.save(step)
                    with stopping.at_once(), watch.patient():
                        found = score_model(recipe, stage.snapshot(), name, step, run, world, monitor, target)
                    stage.keeper.scored(step, found)
    except (DataError, FloatingPointError) as error:
        raise RunError(str(error)) from error
    stage.export()
    stage.close()
