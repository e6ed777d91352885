"""One stage that trains: a fresh model from its ``init``, engines over its trained parts, steps, an export."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from embae.datasets.augment import Augment, ImageSpec
from embae.datasets.batch import Batch, Loader, Work
from embae.datasets.loading import open_loader
from embae.datasets.plan import PKSampler, ShuffledSampler, by_content
from embae.trainer import export
from embae.trainer.adversary import TERM, Adversary
from embae.trainer.batchnorm import use_global_batch_norm
from embae.trainer.distributed import World
from embae.trainer.engine import Engine
from embae.trainer.features import FeatureLoader, cached_features, standard
from embae.trainer.initial import initial_model
from embae.trainer.monitor import Clock, Monitor, line
from embae.trainer.objective import Objective
from embae.trainer.parts import EmbAE
from embae.trainer.schedule import learning_rate, steps
from embae.trainer.schema import Recipe
from embae.trainer.stage_folder import Done, finish


class StageRun:
    """A stage while it runs.

    Args:
        recipe: The run's recipe.
        name: The stage.
        sampler: Its batch plan.
        run: The run folder.
        world: This rank.
        monitor: Where records go.

    Raises:
        ExportError: What the stage starts from does not fit.
    """

    def __init__(self, recipe: Recipe, name: str, sampler: PKSampler | ShuffledSampler, run: Path, world: World,
                 monitor: Monitor):
        self.recipe, self.name, self.keys = recipe, name, recipe.stages[name]
        self._began, self._extracted = time.perf_counter(), 0.0
        self._standard: tuple[Tensor, Tensor] | None = None
        self.run, self.world, self.monitor, self.sampler = run, world, monitor, sampler
        self.spec = spec_of(recipe)
        self.stop = self.keys.steps or steps(self.keys.lr_schedule.epochs, sampler.images, sampler.batch)
        self.model = initial_model(recipe.model, self.keys, name, seed=recipe.seed, run=run,
                                   cameras=sampler.view.cameras(), classes=self._classes())
        use_global_batch_norm(self.model, sync=self.keys.sync_batch_norm)
        self.model.to(world.device).train()
        self._frozen = self._frozen_state(self.model.state_dict())
        work = self.work(0)
        self.cached = self.keys.caches
        self.loader = self._loader(work)
        self._turns = list(self._take_turns(work.largest))

    def _classes(self) -> int:
        if self.keys.use("classifier") == "absent":
            return 0
        return sum(map(len, self.sampler.view.identities))

    def _take_turns(self, largest: int) -> Iterator[tuple[Engine, Collection[str]]]:
        """The updates of a step: whose engine, for which terms of the loss."""
        loss = self.keys.loss
        assert loss is not None  # what this kind of stage is for
        first = loss.triplet.batch_all_epochs if loss.triplet else 0
        batch_all = steps(first, self.sampler.images, self.sampler.batch) if first else 0
        objective = Objective(self.model, loss, accumulate=self.keys.accumulate, cached=self.cached,
                              batch_all_steps=batch_all, standard=self._standard)
        if not loss.adversarial:
            yield Engine(objective, self.keys, largest=largest), loss.terms()
            return
        encoders = Engine(objective, self.keys, largest=largest, others=self.model.discriminator.parameters())
        adversary = Adversary(objective, seed=self.recipe.seed, stage=self.name)
        yield encoders, ["reconstruction"]
        yield Engine(adversary, self.keys, largest=largest), [TERM]
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
        """Runs the stage; yields after each step, with the number of steps done.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        schedule, base = self.keys.lr_schedule, self.keys.optimizer.lr
        epoch = self.sampler.batch / self.sampler.images
        clock, batches = Clock(0, self.stop), iter(self.loader)
        for step in range(self.stop):
            before = time.perf_counter()
            parts = [next(batches) for _ in range(self.keys.accumulate)]
            clock.wait(time.perf_counter() - before)
            if step == 0 and not self.cached:
                self.monitor.images(self.name, 0, parts[0].inputs, self.spec)
            lr = learning_rate(schedule, base, step * epoch)
            report = self._step(parts, lr)
            clock.seen(len(parts[0].plan))
            done = step + 1
            if done % self.keys.log_every == 0 or done == self.stop:
                self._log(parts[0], done, lr, report, clock)
            yield done

    def _step(self, parts: list[Batch], lr: float) -> dict[str, Tensor]:
        report: dict[str, Tensor] = {}
        for engine, terms in self._turns:
            found = engine.step(parts, lr, terms)
            loss = report["loss"] + found.pop("loss", 0) if report else found.pop("loss")
            report |= {**found, "loss": loss}
        return report

    def _log(self, batch: Batch, step: int, lr: float, report: dict[str, Tensor], clock: Clock) -> None:
        values = {key: value.item() for key, value in report.items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"stage {self.name}, step {step}: the loss is {values['loss']}; try a smaller "
                                     f"stages.{self.name}.optimizer.lr, or clip: 1.0")
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
            assert torch.equal(value.view(torch.uint8), state[key].reshape(-1).view(torch.uint8)), f"frozen {key} moved"
        seconds = (time.perf_counter() - self._began) * self.world.world_size + self._extracted
        if self.world.first:
            with finish(self.run / self.name, Done(self.stop, self.stop * self.sampler.batch, seconds)) as folder:
                export.write(folder, self.model, state, keys=self.recipe.model, spec=self.spec)
        dist.barrier()

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
        export.load_into(model, self.state(), self.name)
        return model.to(self.world.device).eval()

    def close(self) -> None:
        """Frees engines and loader."""
        self.loader.close()
        for engine in {id(engine): engine for engine, _ in self._turns}.values():
            engine.close()


def spec_of(recipe: Recipe) -> ImageSpec:
    """What the recipe's model takes."""
    return ImageSpec(*recipe.data.image, recipe.data.mean, recipe.data.std)
