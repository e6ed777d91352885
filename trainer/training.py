"""A whole run: its stages in order, then the table of scores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from embae.datasets.errors import DataError
from embae.datasets.index import Index
from embae.datasets.index_writer import write_whole
from embae.datasets.progress import note
from embae.trainer import runfolder
from embae.trainer.checkpoint import Checkpoint, newest
from embae.trainer.compare import Run, own_stages, share_stages
from embae.trainer.distributed import World, broadcast_object, on_first_rank
from embae.trainer.errors import ExportError, RunError
from embae.trainer.monitor import Monitor
from embae.trainer.passes import run_pass
from embae.trainer.preflight import can_score, open_stage, scores_target
from embae.trainer.profiler import profiled
from embae.trainer.schema import Recipe
from embae.trainer.scoring import score_model, score_run
from embae.trainer.stage import StageRun
from embae.trainer.stage_folder import done, is_done
from embae.trainer.stopping import stopping, unmark
from embae.trainer.watch import watch


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
        raise ExportError(f"{path}: is of stage {stage}, and run lists {', '.join(recipe.run)}")
    if is_done(run, stage):
        raise ExportError(f"{path}: stage {stage} is done in {run}; leave --resume out to go on with the stages after "
                          "it, or take another folder with --out")
    asked.adopt(run / stage)
    write_whole(mark, lambda file: file.write(str(path.resolve()).encode()))


def _stage(recipe: Recipe, name: str, run: Path, world: World, monitor: Monitor, target: Index | None,
           profile: bool) -> None:
    if not recipe.stages[name].loss:
        run_pass(recipe, name, run, world, monitor)
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


def train_all(runs: Sequence[Run], out: Path, world: World, *, fresh: bool) -> None:
    """Trains the runs of a comparison one after the other, each stage that several share once.

    Args:
        runs: Prepared.
        out: The comparison's folder.
        world: This rank.
        fresh: Share no stages.

    Raises:
        RecipeError: Another comparison holds the folder.
    """
    held = on_first_rank(world, lambda: runfolder.lock(out))
    try:
        for number, run in enumerate(runs):
            on_first_rank(world, lambda run=run: own_stages(run) if fresh else share_stages(run, out))  # type: ignore[misc]
            if world.first:
                print(f"\n── {run.recipe.name}, seed {run.recipe.seed} ({number + 1} of {len(runs)}) ──", flush=True)
            train(run.recipe, run.folder, world)
    finally:
        if held:
            held.close()
