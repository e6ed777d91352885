"""One stage that trains: a fresh model from its ``init``, engines over its trained parts, steps, an export."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from embae.datasets.augment import Augment, ImageSpec
from embae.datasets.batch import Batch, Loader, Work
from embae.datasets.loading import open_loader
from embae.datasets.plan import PKSampler, ShuffledSampler, by_content
from embae.trainer import checkpoint, export
from embae.trainer.adversary import TERM, Adversary
from embae.trainer.agreement import Agreement
from embae.trainer.batchnorm import use_global_batch_norm
from embae.trainer.checkpoint import Checkpoint, Meta, set_back
from embae.trainer.distributed import World, on_first_rank
from embae.trainer.engine import Engine
from embae.trainer.errors import ExportError, Stopped
from embae.trainer.export import load_into
from embae.trainer.features import FeatureLoader, cached_features, standard
from embae.trainer.initial import initial_model
from embae.trainer.monitor import Clock, Monitor, line
from embae.trainer.objective import Objective
from embae.trainer.parts import EmbAE
from embae.trainer.saver import Saver
from embae.trainer.schedule import learning_rate, steps
from embae.trainer.schema import Recipe
from embae.trainer.stage_folder import Done, finish
from embae.trainer.stopping import stopping
from embae.trainer.watch import watch


class StageRun:
    """A stage while it runs.

    Args:
        recipe: The run's recipe.
        name: The stage.
        sampler: Its batch plan.
        run: The run folder.
        world: This rank.
        monitor: Where records go.
        resume: The checkpoint to go on from; by default the stage begins.

    Attributes:
        start: Steps done before.
        stop: Steps of the whole stage.

    Raises:
        ExportError: What the stage starts from, or goes on from, does not fit.
    """

    def __init__(self, recipe: Recipe, name: str, sampler: PKSampler | ShuffledSampler, run: Path, world: World,
                 monitor: Monitor, resume: Checkpoint | None = None):
        self.recipe, self.name, self.keys = recipe, name, recipe.stages[name]
        self._began, self._extracted = time.perf_counter(), 0.0
        self._before = resume.meta if resume else Meta(name, 0, 0.0, world.world_size)
        self._best, self.start = self._before.best, self._before.step
        self._standard: tuple[Tensor, Tensor] | None = None
        self.run, self.world, self.monitor, self.sampler = run, world, monitor, sampler
        self.spec = spec_of(recipe)
        self.stop = self.keys.steps or steps(self.keys.lr_schedule.epochs, sampler.images, sampler.batch)
        self.model = initial_model(recipe.model, self.keys, name, seed=recipe.seed, run=run,
                                   cameras=sampler.view.cameras(), classes=self._classes())
        use_global_batch_norm(self.model, sync=self.keys.sync_batch_norm)
        self.model.to(world.device).train()
        self._frozen = self._frozen_state(self.model.state_dict())
        if self.start > self.stop:
            raise ExportError(f"{resume and resume.path}: {self.start} steps are done, but the stage has {self.stop}; "
                              "give it its former length, or remove the checkpoint")
        self._broken = torch.zeros((), device=world.device)
        self._agreement, self._saved = Agreement(world), self.start
        self._saver = Saver(run / name, recipe.checkpoints.keep)
        stopping.before_end = self._saver.wait
        work = self.work(self.start)
        self.cached = self.keys.caches
        self.loader = self._loader(work)
        self._resume(resume, work.largest)

    def _classes(self) -> int:
        if self.keys.use("classifier") == "absent":
            return 0
        return sum(map(len, self.sampler.view.identities))

    def _resume(self, checkpoint: Checkpoint | None, largest: int) -> None:
        """Builds the engines, over the model as the checkpoint left it.

        Beginning and going on are one path: fresh parts from ``init`` first, since the target of a reconstruction by a
        trained backbone is what that was at the stage's begin.
        """
        objective = self._objective()
        if not checkpoint:
            self._turns = list(self._take_turns(objective, largest))
            return
        model, moments = checkpoint.state()
        load_into(self.model, model, str(checkpoint.path))
        now = self.model.state_dict()
        for key, value in self._frozen.items():
            if not same_bits(value, now[key]):
                raise ExportError(f"{checkpoint.path}: its {key.split('.')[0]}, which is frozen, is not that of "
                                  f"{self.keys.init}, where the stage starts; remove {checkpoint.path.parent}")
        self._turns = list(self._take_turns(objective, largest))
        for number, engine in enumerate(self._engines()):
            own = {key.removeprefix(f"{number}/"): value for key, value in moments.items()
                   if key.startswith(f"{number}/")}
            try:
                engine.restore_moments(own)
            except ValueError as error:
                raise ExportError(f"{checkpoint.path}: {error}") from error
        if self.world.first:
            set_back(self.run / self.name, self.start)
        self.monitor.set_back(self.name, self.start)

    def _engines(self) -> list[Engine]:
        return list({id(engine): engine for engine, _ in self._turns}.values())

    def _objective(self) -> Objective:
        loss = self.keys.loss
        assert loss is not None  # what this kind of stage is for
        first = loss.triplet.batch_all_epochs if loss.triplet else 0
        batch_all = steps(first, self.sampler.images, self.sampler.batch) if first else 0
        return Objective(self.model, loss, accumulate=self.keys.accumulate, cached=self.cached,
                         batch_all_steps=batch_all, standard=self._standard)

    def _take_turns(self, objective: Objective, largest: int) -> Iterator[tuple[Engine, Collection[str]]]:
        """The updates of a step: whose engine, for which terms of the loss."""
        loss = self.keys.loss
        assert loss is not None
        if not loss.adversarial:
            yield Engine(objective, self.keys, largest=largest, broken=self._broken), loss.terms()
            return
        encoders = Engine(objective, self.keys, largest=largest, broken=self._broken,
                          others=self.model.discriminator.parameters())
        adversary = Adversary(objective, seed=self.recipe.seed, stage=self.name)
        yield encoders, ["reconstruction"]
        yield Engine(adversary, self.keys, largest=largest, broken=self._broken), [TERM]
        yield encoders, ["adversarial"]
        for term in loss.terms():
            if term not in ("reconstruction", "adversarial"):
                yield encoders, [term]

    def work(self, start: int) -> Work:
        """The batches of this rank from a step on."""
        augment = Augment(**self.keys.data.augment.model_dump())
        return Work(self.sampler, self.spec, augment, seed=self.recipe.seed, stage=self.name, start=start,
                    stop=self.stop, rank=self.world.rank, world_size=self.world.world_size,
                    accumulate=self.keys.accumulate)

    def _loader(self, work: Work) -> Loader:
        data = self.recipe.data
        if not self.cached:
            return open_loader(work, loader=data.loader, device=self.world.device, threads=data.threads)
        before = time.perf_counter()
        bf16 = self.keys.precision == "bf16"
        cached = cached_features(self.model, self.sampler.view, self.spec, self.world, bf16=bf16,
                                 folder=self.run / "cache", loader=data.loader, threads=data.threads)
        if self.keys.loss and self.keys.loss.reconstruction and self.keys.loss.reconstruction.standardised:
            self._standard = standard(cached.features, by_content(self.sampler.view), self.world.device)
        # What they took is part of this stage's cost even where they were there.
        self._extracted = cached.rank_seconds - (time.perf_counter() - before) * self.world.world_size
        return FeatureLoader(work, cached.features, self.world.device)

    def train(self) -> Iterator[int]:
        """Runs the stage; yields the number of steps done: where it goes on, if it does, and after each step.

        Raises:
            FloatingPointError: The loss is not finite; what is needed to see it again is in the stage's folder.
            RunError: A checkpoint could not be written.
            Stopped: A signal asked for it; there is a checkpoint of the last step.
        """
        schedule, base = self.keys.lr_schedule, self.keys.optimizer.lr
        epoch = self.sampler.batch / self.sampler.images
        clock, batches = Clock(self.start, self.stop), iter(self.loader)
        with stopping.after_step(), watch.steps():
            if self.start:
                yield self.start
            for step in range(self.start, self.stop):
                before = time.perf_counter()
                parts = [next(batches) for _ in range(self.keys.accumulate)]
                clock.wait(time.perf_counter() - before)
                if step == 0 and not self.cached:
                    self.monitor.images(self.name, 0, parts[0].inputs, self.spec)
                lr = learning_rate(schedule, base, step * epoch)
                report = self._step(parts, lr)
                clock.seen(len(parts[0].plan))
                done = step + 1
                watch.seen(f"stage {self.name}, step {done}")
                broken, failed, stop = self._agreement.exchange(self._broken, self._saver.failed,
                                                                stopping.asked is not None)
                if broken:
                    self._fail(parts, step, report)
                if failed:
                    on_first_rank(self.world, self._saver.wait)
                if stop or done % self.recipe.checkpoints.every == 0 or done == self.stop:
                    clock.save(self.save(done))
                if done % self.keys.log_every == 0 or done == self.stop:
                    self._log(done, lr, report, clock)
                if stop:
                    on_first_rank(self.world, self._saver.wait)
                    raise Stopped(f"after step {done} of stage {self.name}")
                yield done

    def save(self, step: int) -> float:
        """Writes a checkpoint, unless there is one of this step.

        Args:
            step: Steps done.

        Returns:
            Seconds that it kept the caller waiting.
        """
        if step == self._saved:
            return 0.0
        self._saved, began = step, time.perf_counter()
        model, moments = self._everything()
        if self.world.first:
            self._saver.save(self._meta(step), model, moments)
        waited = time.perf_counter() - began
        self.monitor.record("checkpoint", self.name, step, {"seconds_waited": waited})
        return waited

    def scored(self, step: int, scores: dict[str, float]) -> None:
        """Remembers the best scores on the target."""
        if scores["mAP"] > self._best.get("mAP", -1.0):
            self._best = {"step": step, **{name: scores[name] for name in ("Rank-1", "mAP")}}

    def _meta(self, step: int) -> Meta:
        return Meta(self.name, step, self._spent(), self.world.world_size, self._best)

    def _spent(self) -> float:
        now = (time.perf_counter() - self._began) * self.world.world_size
        return self._before.rank_seconds + now + self._extracted

    def _everything(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's state and all moments, on the CPU; all ranks take part, the first one has it."""
        model, moments = self.state(), {}
        for number, engine in enumerate(self._engines()):
            for key, value in engine.moments().items():
                if self.world.first:
                    moments[f"{number}/{key}"] = value.cpu()
        return model, moments

    def _fail(self, parts: list[Batch], step: int, report: dict[str, Tensor]) -> None:
        """Leaves a checkpoint of before the step and the step's images, and ends the run."""
        model, moments = self._everything()
        said = {key: value.item() for key, value in report.items()}

        def leave() -> None:
            folder = self.run / self.name / "failed" / f"step-{step:06}"
            checkpoint.write(folder, self._meta(step), model, moments)
            view, plan = self.sampler.view, parts[0].plan
            datasets, rows = view.locate(plan)
            images = [{"dataset": view.names[dataset], "key": view.indexes[dataset].key(row)}
                      for dataset, row in zip(datasets, rows, strict=True)]
            tree = {"step": step + 1, "losses": {key: repr(value) for key, value in said.items()}, "images": images}
            (folder / "batch.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
            raise FloatingPointError(
                f"stage {self.name}, step {step + 1}: the loss is {said['loss']}, and no weight was moved by it. Try a "
                f"smaller stages.{self.name}.optimizer.lr, or clip: 1.0. The state before the step and the images of "
                f"its batch are in {folder}; with --resume it is taken again")

        on_first_rank(self.world, leave)

    def _step(self, parts: list[Batch], lr: float) -> dict[str, Tensor]:
        report: dict[str, Tensor] = {}
        for engine, terms in self._turns:
            found = engine.step(parts, lr, terms)
            loss = report["loss"] + found.pop("loss", 0) if report else found.pop("loss")
            report |= {**found, "loss": loss}
        return report

    def _log(self, step: int, lr: float, report: dict[str, Tensor], clock: Clock) -> None:
        values = {key: value.item() for key, value in report.items()}
        epoch = step * self.sampler.batch / self.sampler.images
        values |= {"lr": lr, "epoch": epoch, **clock.read(step)}
        self.monitor.say(line(self.name, step, self.stop, values))
        self.monitor.record("train", self.name, step, {**values, "loader": self.loader.name})

    def export(self) -> None:
        """Checks that frozen parts are what they were, and writes the export.

        Raises:
            AssertionError: A frozen part moved: a bug of ours.
        """
        state = self.state()
        for key, value in self._frozen.items():
            assert same_bits(value, state[key]), f"frozen {key} moved"

        def write() -> None:
            self._saver.wait()
            took = Done(self.stop, self.stop * self.sampler.batch, self._spent())
            with finish(self.run / self.name, took) as folder:
                export.write(folder, self.model, state, keys=self.recipe.model, spec=self.spec)

        on_first_rank(self.world, write)

    def state(self) -> dict[str, Tensor]:
        """The model's whole state on the CPU, on every rank."""
        return self._turns[0][0].state()

    def _frozen_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        frozen = {part for part, use in self.keys.parts.items() if use == "frozen"}
        return {key: value.detach().cpu().clone().reshape(-1) for key, value in state.items()
                if key.split(".")[0] in frozen}

    def snapshot(self) -> EmbAE:
        """A copy of the model as it is now, in eval mode, for scoring during training."""
        own = self.model
        model = EmbAE(self.recipe.model, own.heads, own.uses, classes=own.classes, cameras=own.cameras)
        load_into(model, self.state(), self.name)
        return model.to(self.world.device).eval()

    def close(self) -> None:
        """Frees engines and loader."""
        self.loader.close()
        for engine in self._engines():
            engine.close()


def same_bits(flat: Tensor, other: Tensor) -> bool:
    """Whether a tensor, flattened, is another one bit for bit."""
    return torch.equal(flat.view(torch.uint8), other.cpu().reshape(-1).view(torch.uint8))


def spec_of(recipe: Recipe) -> ImageSpec:
    """What the recipe's model takes."""
    return ImageSpec(*recipe.data.image, recipe.data.mean, recipe.data.std)
