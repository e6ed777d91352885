"""A whole run: its stages in order, then the table of scores."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from embae.datasets.console.progress import note
from embae.datasets.errors import DataError
from embae.datasets.files.atomic import write_text
from embae.datasets.index.arrow_index import Index
from embae.trainer.errors import RunError, WeightsError
from embae.trainer.evaluation.score_model import score_model
from embae.trainer.evaluation.score_run import score_run
from embae.trainer.monitoring.monitor import Monitor
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.monitoring.step_phases import profile_steps
from embae.trainer.recipe.schema import Recipe
from embae.trainer.runs.folder import write_recipe
from embae.trainer.runs.folder_lock import lock_folder
from embae.trainer.runs.run_datasets import can_score, scores_target
from embae.trainer.runs.same_recipe import check_same_recipe
from embae.trainer.runs.stage_data import open_sampler
from embae.trainer.runs.stage_folder import is_done, read_cost
from embae.trainer.runtime.distributed import World, broadcast_object, on_first_rank
from embae.trainer.runtime.signals import StopSignals, forget_end
from embae.trainer.training.calibrate_stage import run_calibrate_stage
from embae.trainer.training.checkpoint import Checkpoint, newest
from embae.trainer.training.cluster_stage import run_cluster_stage
from embae.trainer.training.stage import StageRun


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run besides its recipe.

    Attributes:
        last: Stop after this stage, without scores.
        resume: The checkpoint from which its stage resumes; by default each stage resumes from its newest whole one.
        profile: Write a trace of a few steps of each stage beside its curves in TensorBoard, on rank 0.
    """

    last: str | None = None
    resume: Path | None = None
    profile: bool = False


def train(recipe: Recipe, folder: Path, world: World, signals: StopSignals,
          options: TrainOptions = TrainOptions()) -> None:
    """Runs every unfinished stage, then scores the target.

    Args:
        recipe: Checked.
        folder: The run folder.
        world: This rank.
        signals: The stop requests of this process.
        options: The options of the command.

    Raises:
        RecipeError: Another run holds the folder, or it contains a run of another recipe.
        WeightsError: There is no whole checkpoint at `options.resume`, or it belongs to a stage that is done.
        Stopped: A signal requested it.
    """
    signals.record_in(folder)
    lock = on_first_rank(world, lambda: _take_folder(folder, recipe, world, options.resume))
    context = RunContext(recipe, folder, world, Monitor.open(folder, world.first), signals)
    try:
        target = Index.open(recipe.data.root / recipe.data.target) if scores_target(recipe) else None
        for name in recipe.run:
            if is_done(folder, name):
                context.monitor.say(f"[{name}] done before, {read_cost(folder, name).steps} steps")
            else:
                run_stage(context, name, target, profile=options.profile and world.first)
            if name == options.last:
                return
        try:
            if target is not None:
                score_run(context, target)
        except (DataError, FloatingPointError) as error:
            raise RunError(str(error)) from error
    finally:
        context.monitor.close()
        if lock:
            lock.close()


def _take_folder(folder: Path, recipe: Recipe, world: World, resume: Path | None) -> IO[str]:
    lock = lock_folder(folder)
    try:
        check_same_recipe(folder, recipe)
        if resume:
            _adopt_checkpoint(resume, recipe, folder)
        write_recipe(folder, recipe, world.world_size)
        forget_end(folder)
    except BaseException:
        lock.close()
        raise
    return lock


def _adopt_checkpoint(path: Path, recipe: Recipe, folder: Path) -> None:
    """Makes a checkpoint the newest of its stage, once: the same command then resumes from later checkpoints."""
    mark = folder / "resumed"
    if mark.exists() and mark.read_text(encoding="utf-8") == str(path.resolve()):
        note(f"{folder}: has resumed from {path} before, and now resumes from its newest checkpoint; remove {mark} to "
             f"return to {path.name}")
        return
    checkpoint = Checkpoint.open(path)
    stage = checkpoint.meta.stage
    if stage not in recipe.run:
        raise WeightsError(f"{path}: belongs to stage {stage}, and run lists {', '.join(recipe.run)}")
    if is_done(folder, stage):
        raise WeightsError(f"{path}: stage {stage} is done in {folder}; leave out --resume to continue with the stages "
                           "after it, or choose another folder with --out")
    checkpoint.adopt(folder / stage)
    write_text(mark, str(path.resolve()))


def run_stage(context: RunContext, name: str, target: Index | None, *, profile: bool = False) -> None:
    """Runs one stage: it calibrates, clusters or trains.

    Args:
        context: The run.
        name: The stage.
        target: Scored during the stage, if the recipe says so.
        profile: Write a trace of a few steps.

    Raises:
        RunError: What an earlier stage left does not fit, or the stage fails.
    """
    stage = context.recipe.stages[name]
    if stage.calibrate:
        run_calibrate_stage(context, name)
    elif stage.cluster:
        run_cluster_stage(context, name)
    else:
        _train_stage(context, name, target, profile=profile)


def _train_stage(context: RunContext, name: str, target: Index | None, *, profile: bool) -> None:
    recipe, monitor, signals = context.recipe, context.monitor, context.signals
    try:
        plan = open_sampler(recipe, name, context.folder)
    except DataError as error:
        if not (labels := recipe.stages[name].data.labels):
            raise
        # The input of the run is right: what does not fit is the result of the clustering.
        raise RunError(f"stage {name}, by the clusters of {labels}: {error} Another P, or other keys of {labels}, make "
                       "another recipe, which needs another folder: --out") from error
    checkpoint = broadcast_object(on_first_rank(context.world, lambda: newest(context.folder / name)))
    stage = StageRun(context, name, plan, checkpoint)
    if checkpoint:
        monitor.say(f"[{name}] resumes after step {stage.start}, from {checkpoint.path}")
    monitor.say(f"[{name}] {stage.stop} steps of {plan.batch} images from {', '.join(plan.view.names)} "
                f"({plan.images:,} images), trains {', '.join(stage.keys.trained())}, loader {stage.loader.name}")
    every = stage.keys.evaluate_every
    trace = profile_steps(stage, context.folder / "tensorboard" / name) if profile else nullcontext(lambda: None)
    with signals.finishing(stage.keeper.wait):
        try:
            with trace as end_step:
                for step in stage.train():
                    end_step()
                    if every and target is not None and step % every == 0 and step < stage.stop and can_score(target):
                        stage.keeper.save(step)
                        with signals.at_once(), context.world.watchdog.expect_pause():
                            scores = score_model(context, stage.snapshot(), name, step, target)
                        stage.keeper.scored(step, scores)
        except (DataError, FloatingPointError) as error:
            raise RunError(str(error)) from error
        stage.export()
    stage.close()
