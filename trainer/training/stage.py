"""One stage that trains: a fresh model from its ``init``, engines over its trained parts, steps, an export."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from embae.datasets.loading.batch import Batch, Loader, Work
from embae.datasets.loading.open_loader import open_loader
from embae.datasets.sampling.content_order import order_by_content
from embae.datasets.sampling.pk_sampler import PKSampler
from embae.datasets.sampling.shuffled_sampler import ShuffledSampler
from embae.trainer.errors import Stopped, WeightsError
from embae.trainer.inference.features import FeatureLoader, cached_features, feature_mean_std
from embae.trainer.inference.options import Inference
from embae.trainer.losses.term import TermState
from embae.trainer.model import saved as export
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.saved import load_into
from embae.trainer.monitoring.run_context import RunContext
from embae.trainer.monitoring.step_phases import Phase, TimedLoader
from embae.trainer.monitoring.step_rates import Clock, format_step
from embae.trainer.runs.stage_folder import StageCost, finish_stage
from embae.trainer.runtime.distributed import on_first_rank
from embae.trainer.runtime.step_flags import StepFlags
from embae.trainer.training.adversarial_updates import build_updates
from embae.trainer.training.adversary import gaussian_noise
from embae.trainer.training.checkpoint import Checkpoint, Meta, set_back
from embae.trainer.training.initial_model import StageStart, initial_model
from embae.trainer.training.objective import BatchForm, Objective
from embae.trainer.training.schedule import learning_rate, steps
from embae.trainer.training.stage_checkpoints import StageCheckpoints
from embae.trainer.training.term_states import BATCH, start_states
from embae.trainer.training.updates import StepUpdates


class StageRun:
    """A stage while it runs.

    Args:
        context: The run.
        name: The stage.
        sampler: Its batch plan.
        resume: The checkpoint to resume from; by default the stage starts.

    Attributes:
        start: Steps done before.
        stop: Steps of the whole stage.
        updates: The updates of a step, with their engines.

    Raises:
        WeightsError: What the stage starts or resumes from does not fit.
    """

    def __init__(self, context: RunContext, name: str, sampler: PKSampler | ShuffledSampler,
                 resume: Checkpoint | None = None):
        recipe, run, world, monitor = context.recipe, context.folder, context.world, context.monitor
        self.recipe, self.name, self.keys, self._signals = recipe, name, recipe.stages[name], context.signals
        self.run, self.world, self.monitor, self.sampler = run, world, monitor, sampler
        self.spec, began = recipe.data.spec, time.perf_counter()
        self.start = resume.meta.step if resume else 0
        self.stop = self.keys.steps or steps(self.keys.lr_schedule.epochs, sampler.images, sampler.batch)
        if resume and self.start > self.stop:
            raise WeightsError(
                f"{resume.path}: {self.start} steps are done, but the stage has {self.stop}; give it its "
                "former length, or remove the checkpoint"
            )
        start = StageStart(name, recipe.seed, run, sampler.view, self._classes(), self.spec.size)
        self.model = initial_model(recipe.model, self.keys, start)
        use_global_batch_norm(self.model, sync=self.keys.sync_batch_norm)
        self.model.to(world.device).train()
        self._frozen = self._frozen_state(self.model.state_dict())
        self._standard: tuple[Tensor, Tensor] | None = None
        self._states = self._build_states(starts=not resume)
        work = self.work(self.start)
        self.cached, elsewhere = self.keys.caches, 0.0
        self.loader: Loader
        if self.cached:
            self.loader, elsewhere = self._features(work)
        else:
            self.loader = open_loader(work, loader=recipe.data.loader, device=world.device, threads=recipe.data.threads)
        self.updates = self._build_updates(resume, work.largest)
        before = resume.meta if resume else Meta(name, 0, 0.0, world.world_size)
        took = elsewhere + (time.perf_counter() - began) * world.world_size
        self.keeper = StageCheckpoints(
            run / name,
            self.updates,
            replace(before, rank_seconds=before.rank_seconds + took),
            world,
            monitor,
            keep=recipe.checkpoints.keep,
        )

    def _classes(self) -> int:
        if self.keys.use("classifier") == "absent":
            return 0
        return sum(map(len, self.sampler.view.identities))

    def _build_states(self, starts: bool) -> dict[str, TermState]:
        """The states of the loss terms: a stage that resumes reads them from the checkpoint."""
        assert self.keys.loss is not None
        states = self.keys.loss.build_states(self.sampler.view, self.model.z)
        for state in states.values():
            state.buffers.to(self.world.device)
        if starts and states:
            self._start_states(states.values())
        return states

    def _start_states(self, states: Collection[TermState]) -> None:
        inference = Inference.of_recipe(self.recipe, self.world, self.run / "cache", tta="none", batch=BATCH)
        start_states(states, self.model.eval(), self.sampler.view, inference)
        self.model.train()

    def _build_updates(self, resume: Checkpoint | None, largest: int) -> StepUpdates:
        """The engines, over the model as the checkpoint left it, if there is one.

        Starting and resuming are one path: parts come from ``init`` first, since the target of a reconstruction by a
        trained backbone is the backbone as it was when the stage started.
        """
        loss = self.keys.loss
        assert loss is not None  # a stage that trains
        form = BatchForm(self.keys.accumulate, self.cached, self._standard, self.sampler.images, self.sampler.batch)
        objective = Objective(self.model, loss, self._states, form)
        model, moments = resume.state() if resume else ({}, {})
        if resume:
            load_into(self.model, model, str(resume.path))
            self._check_frozen(model, resume.path)
        updates = build_updates(objective, self.keys, gaussian_noise(self.recipe.seed, self.name), largest=largest)
        if resume:
            try:
                updates.restore_moments(moments)
            except ValueError as error:
                raise WeightsError(f"{resume.path}: {error}") from error
        if self.world.first:  # at a start too: there may be records and damaged checkpoints of an earlier one
            set_back(self.run / self.name, self.start)
        self.monitor.drop_later(self.name, self.start)
        return updates

    def _check_frozen(self, state: dict[str, Tensor], path: Path) -> None:
        for key, value in self._frozen.items():
            if not same_bits(value, state[key]):
                raise WeightsError(
                    f"{path}: its {key.split('.')[0]}, which is frozen, is not that of {self.keys.init}, "
                    f"where the stage starts; remove {path.parent}"
                )

    def work(self, start: int) -> Work:
        """The batches of this rank from a step on."""
        return Work(
            self.sampler,
            self.spec,
            self.keys.data.augment,
            seed=self.recipe.seed,
            stage=self.name,
            start=start,
            stop=self.stop,
            rank=self.world.rank,
            world_size=self.world.world_size,
            accumulate=self.keys.accumulate,
        )

    def _features(self, work: Work) -> tuple[FeatureLoader, float]:
        """The loader of cached features, and the rank-seconds that they took elsewhere: this stage counts them."""
        began, inference = time.perf_counter(), Inference.of_recipe(self.recipe, self.world, self.run / "cache")
        bf16 = self.keys.precision == "bf16"
        cached = cached_features(self.model, self.sampler.view, inference, bf16=bf16)
        if self.keys.loss and self.keys.loss.needs_feature_scale:
            self._standard = feature_mean_std(cached.features, order_by_content(self.sampler.view), self.world.device)
        elsewhere = cached.rank_seconds - (time.perf_counter() - began) * self.world.world_size
        return FeatureLoader(work, cached.features, self.world.device), elsewhere

    def train(self) -> Iterator[int]:
        """Runs the stage; yields the number of steps done: where it resumes, if it does, and after each step.

        Raises:
            FloatingPointError: The loss is not finite; the stage's folder has what is needed to reproduce it.
            RunError: A checkpoint could not be written.
            Stopped: A signal requested it; there is a checkpoint of the last step.
        """
        schedule, base = self.keys.lr_schedule, self.keys.optimizer.lr
        epoch = self.sampler.batch / self.sampler.images
        clock, batches, agreement = Clock(self.start, self.stop), iter(self.loader), StepFlags(self.world)
        recent: deque[tuple[Batch, dict[str, Tensor]]] = deque(maxlen=2)
        watchdog = self.world.watchdog
        with self._signals.after_step(), watchdog.expect_steps():
            if self.start:
                yield self.start
            for step in range(self.start, self.stop):
                before = time.perf_counter()
                parts = [next(batches) for _ in range(self.keys.accumulate)]
                clock.add_waiting(time.perf_counter() - before)
                if step == 0 and not self.cached:
                    self.monitor.record_images(self.name, 0, parts[0].inputs, self.spec)
                lr = learning_rate(schedule, base, step * epoch)
                report = self.updates.step(parts, lr)
                recent.append((parts[0], report))
                clock.add_images(len(parts[0].plan))
                done = step + 1
                watchdog.report(f"stage {self.name}, step {done}")
                broken, unsaved, stop = agreement.exchange(self.updates.broken, self.keeper.failed,
                                                           self._signals.requested is not None)
                if broken:
                    self._fail(recent)
                if unsaved:
                    self.keeper.settle()
                if stop or done % self.recipe.checkpoints.every == 0 or done == self.stop:
                    clock.add_saving(self.keeper.save(done))
                if done % self.keys.log_every == 0 or done == self.stop:
                    self._log(done, lr, report, clock)
                if stop:
                    self.keeper.settle()
                    raise Stopped(f"after step {done} of stage {self.name}")
                yield done

    def _fail(self, recent: Iterable[tuple[Batch, dict[str, Tensor]]]) -> None:
        """Ends the run; reports the first of these steps with a loss that is not finite, or else the last one."""
        steps = [(batch, {key: value.item() for key, value in report.items()}) for batch, report in recent]
        broken = [step for step in steps if not all(map(math.isfinite, step[1].values()))]
        self.keeper.fail(*(broken or steps[-1:])[0])

    def _log(self, step: int, lr: float, report: dict[str, Tensor], clock: Clock) -> None:
        values = {key: value.item() for key, value in report.items()}
        epoch = step * self.sampler.batch / self.sampler.images
        values |= {"lr": lr, "epoch": epoch, **clock.read(step)}
        self.monitor.say(format_step(self.name, step, self.stop, values))
        self.monitor.record("train", self.name, step, {**values, "loader": self.loader.name})

    def time_phases(self, phase: Phase) -> None:
        """Runs loading, forward, backward and optimizer within phases, for measurements; call it before training."""
        self.loader = TimedLoader(self.loader, phase)
        self.updates.time_phases(phase)

    def export(self) -> None:
        """Checks that frozen parts have not changed, and writes the export.

        Raises:
            AssertionError: A frozen part changed: a bug of embae.
        """
        state = self.state()
        for key, value in self._frozen.items():
            assert same_bits(value, state[key]), f"frozen {key} changed"

        def write() -> None:
            self.keeper.wait()
            took = StageCost(self.stop, self.stop * self.sampler.batch, self.keeper.spent())
            with finish_stage(self.run / self.name, took) as folder:
                export.write(folder, self.model, state, keys=self.recipe.model, spec=self.spec)

        on_first_rank(self.world, write)

    def state(self) -> dict[str, Tensor]:
        """The whole state of the model that the stage exports, on the CPU, on every rank."""
        return self.updates.result()

    def _frozen_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        frozen = {part for part, use in self.keys.parts.items() if use == "frozen"}
        return {key: value.detach().cpu().clone().reshape(-1) for key, value in state.items()
                if key.split(".")[0] in frozen}

    def snapshot(self) -> EmbAE:
        """A copy of the model as it is now, in eval mode, for scoring during training."""
        model = EmbAE(self.recipe.model, self.model.uses, self.model.domain, size=self.spec.size)
        load_into(model, self.state(), self.name)
        return model.to(self.world.device).eval()

    def close(self) -> None:
        """Frees engines and loader."""
        self.loader.close()
        self.updates.close()


def same_bits(flat: Tensor, other: Tensor) -> bool:
    """Whether a tensor, flattened, is another one bit for bit."""
    return torch.equal(flat.view(torch.uint8), other.cpu().reshape(-1).view(torch.uint8))

