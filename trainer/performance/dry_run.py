"""``embae train --dry-run``: what each stage would need of a rank, for any number of ranks; it starts nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embae.datasets.console.tables import format_table, format_text
from embae.datasets.files.json_files import write_json
from embae.datasets.loading.batch import Batch
from embae.datasets.sampling.pk_sampler import PKSampler
from embae.datasets.sampling.sampler import share
from embae.datasets.sampling.shuffled_sampler import ShuffledSampler
from embae.datasets.sampling.view import View
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.camera_tables import extend_tables
from embae.trainer.model.domain import Head, ModelDomain
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.heads import head_labels
from embae.trainer.model.known_cameras import KnownCameras
from embae.trainer.model.manifest import META, read_manifest
from embae.trainer.performance.estimate import Passes, RankMemory, owned, passes, pretended, rank_memory, sent, size_of
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.stage import Stage
from embae.trainer.runs.stage_data import open_trial_sampler, open_view
from embae.trainer.runs.stage_folder import EXPORT
from embae.trainer.training.adversary import gaussian_noise, updates_in_turn
from embae.trainer.training.objective import BatchForm, Objective
from embae.trainer.training.schedule import steps

LEFT_OUT = ("Left out: temporary tensors of single operators, what the allocator, cuDNN, NCCL and the CUDA context "
            "take, batches decoded ahead, scoring and extraction, checkpoints, single numbers that ranks exchange, "
            "tables of calibrated models, ZeRO's offloading. Batch-all mining counts as batch-hard, and at ZeRO 3 all "
            "weights as gathered at once.")
ROWS = {"weights": "weights", "gradients": "gradients", "optimizer": "optimizer", "exchange": "exchange buffers",
        "average": "moving average"}


@dataclass(frozen=True)
class Needs:
    """What a stage that trains needs.

    Attributes:
        at_most: Whether an earlier stage makes labels: images, steps and classes are then bounds.
        images: That an epoch goes over.
        batch: Images of a step, over all ranks.
        rows: Fewest and most images of a rank's share of a step.
        inputs: ``images`` or ``features``, cached ones.
        epoch_steps: Steps an epoch.
        steps: Steps of the stage.
        zero: The ZeRO stage that the recipe sets.
        passes: What forward and backward come to.
        memory: By ZeRO stage that the recipe may set.
        sent: Bytes that a rank sends in a step, by ZeRO stage, those of `passes` included.
    """

    stage: str
    at_most: bool
    images: int
    batch: int
    rows: tuple[int, int]
    inputs: str
    epoch_steps: int
    steps: int
    precision: str
    zero: int
    passes: Passes
    memory: dict[int, RankMemory]
    sent: dict[int, float]

    def whole(self, zero: int) -> int:
        """Bytes that a rank keeps."""
        return sum(asdict(self.memory[zero]).values()) + self.passes.activations

    def text(self) -> str:
        """The stage as a table."""
        most = "at most " if self.at_most else ""
        low, high = self.rows
        rows = f"{low}" if low == high else f"{low} … {high}"
        head = (f"{self.stage}: {most}{self.images:,} images, {self.epoch_steps:,} steps an epoch, {self.steps:,} "
                f"steps; {self.batch} {self.inputs} a step, {rows} a rank; {self.precision}; "
                f"{self.passes.flops / 1e9:,.2f} GFLOP a step forward and backward")
        megabytes = {name: [getattr(self.memory[zero], key) for zero in self.memory] for key, name in ROWS.items()}
        megabytes["activations"] = [self.passes.activations] * len(self.memory)
        megabytes["together"] = [self.whole(zero) for zero in self.memory]
        megabytes["sent a step"] = [self.sent[zero] for zero in self.memory]
        cells = [[name, *(f"{value / 1e6:,.2f}" for value in values)]
                 for name, values in megabytes.items() if any(values) or name == "sent a step"]
        columns = [f"ZeRO {zero}" + "*" * (zero == self.zero) for zero in self.memory]
        return f"{format_text(head)}\n{format_table(['MB a rank', *columns], cells, left=['MB a rank'])}"

    def tree(self) -> dict[str, Any]:
        """As JSON; bytes, by the ZeRO stage's number."""
        values = {key: value for key, value in asdict(self).items() if key != "passes"}
        return {**values, "activations": self.passes.activations, "flops": self.passes.flops,
                "together": {zero: self.whole(zero) for zero in self.memory}}


def dry_run(recipe: Recipe, world_size: int, to: Path | None = None) -> None:
    """Prints what every stage needs.

    Args:
        recipe: One that preflight has found fine for so many ranks.
        world_size: Number of ranks.
        to: Where the same goes as JSON.
    """
    print(f"{recipe.name} on {world_size} rank{'s' * (world_size > 1)}: recipe and data are fine. "
          "Of a rank with the largest share of a step; * is the recipe's ZeRO stage.", flush=True)
    stages: list[Needs] = []
    heads: dict[str, list[Head]] = {}
    for name in recipe.run:
        stage = recipe.stages[name]
        view = open_view(recipe, name)
        heads[name] = _heads(recipe, stage, view, heads)
        if stage.loss:
            stages.append(needs(recipe, name, open_trial_sampler(recipe, name, most=True), heads[name], world_size))
        print("\n" + (stages[-1].text() if stage.loss else f"{name}: trains nothing ({stage.kind})"), flush=True)
    print(f"\n{LEFT_OUT}", flush=True)
    if to:
        tree = {"recipe": recipe.name, "world_size": world_size, "stages": [one.tree() for one in stages],
                "left_out": LEFT_OUT}
        to.parent.mkdir(parents=True, exist_ok=True)
        write_json(to, tree)


def needs(recipe: Recipe, name: str, sampler: PKSampler | ShuffledSampler, heads: Sequence[Head],
          world_size: int) -> Needs:
    """What a stage that trains needs.

    Args:
        recipe: Checked.
        name: The stage.
        sampler: Its batch plan.
        heads: Whom its nuisance heads serve.
        world_size: Number of ranks.
    """
    keys = recipe.stages[name]
    assert keys.loss is not None  # the caller's promise
    plan, step = next((plan, step) for step in range(10**9) if len(plan := sampler.plan(step)) == sampler.batch)
    shares = [share(len(plan), part, world_size * keys.accumulate) for part in range(world_size * keys.accumulate)]
    number = int(np.argmax([part.stop - part.start for part in shares]))
    slots = shares[number]
    data = keys.data
    least = min(data.P.values()) * (data.K or 1) if isinstance(data.P, dict) else sampler.batch
    by_camera = keys.normalised("camera")
    with torch.random.fork_rng(devices=[]):
        known_cameras = KnownCameras(sampler.view.cameras()) if by_camera else KnownCameras()
        domain = ModelDomain(heads, sum(map(len, sampler.view.identities)), known_cameras)
        model = EmbAE(recipe.model, keys.parts, domain, running=keys.normalised("running"), size=recipe.data.image)
    for part in by_camera:
        extend_tables(getattr(model, part), len(model.known_cameras.cameras), trains=True)
    use_global_batch_norm(model, sync=keys.sync_batch_norm)
    scale = (torch.zeros(model.features), torch.ones(model.features)) if keys.loss.needs_feature_scale else None
    form = BatchForm(keys.accumulate, keys.caches, scale, sampler.images, sampler.batch)
    states = keys.loss.build_states(sampler.view, model.z)
    objective = Objective(model.train(), keys.loss.dry(), states, form)
    updates = updates_in_turn(objective, keys.loss, gaussian_noise(recipe.seed, name))
    with pretended(objective, number // keys.accumulate, world_size):
        shape = (model.features,) if keys.caches else (3, *recipe.data.image)
        inputs = torch.empty(slots.stop - slots.start, *shape)
        if not keys.caches:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        went = passes(updates, Batch(inputs, plan[slots], plan, slots, step, sampler.view), keys)
        engines, buffers = owned(updates, keys), size_of(objective.buffers())
        averaged = size_of(value for key, value in model.named_buffers()
                           if keys.use(key.split(".")[0]) == "train" and value.is_floating_point())  # type: ignore[arg-type]
    # What else a recipe refuses is in `schema.py` and what it imports.
    alone = keys.loss.adversarial or (recipe.model.nuisance.per != "shared" and keys.use("nuisance") == "train")
    zeros = [0] if alone else range(4)
    return Needs(
        stage=name,
        at_most=keys.data.labels is not None,
        images=sampler.images,
        batch=sampler.batch,
        rows=(least // world_size, -(-sampler.batch // world_size)),
        inputs="features" if keys.caches else "images",
        epoch_steps=steps(1, sampler.images, sampler.batch),
        steps=keys.steps or steps(keys.lr_schedule.epochs, sampler.images, sampler.batch),
        precision=keys.precision,
        zero=keys.deepspeed.zero_stage,
        passes=went,
        memory={
            zero: rank_memory(engines, keys, world_size, zero, buffers=buffers, averaged=averaged) for zero in zeros
        },
        sent={zero: sent(engines, keys, world_size, zero) + went.sent for zero in zeros},
    )


def _heads(recipe: Recipe, stage: Stage, view: View, earlier: dict[str, list[Head]]) -> list[Head]:
    """The nuisance heads of a stage: those that it starts from, or new ones for the cameras of its images."""
    if stage.use("nuisance") == "absent":
        return []
    if "nuisance" not in stage.reinit and (heads := earlier.get(stage.init) or next(_exported(stage.init), [])):
        return heads
    return head_labels(recipe.model.nuisance.per, view.cameras())


def _exported(init: str) -> Iterator[list[Head]]:
    for folder in (Path(init), Path(init) / EXPORT):
        if (folder / META).is_file():
            yield list(read_manifest(folder).heads)
