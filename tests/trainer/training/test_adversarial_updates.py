"""The turns of an adversarial step: who moves in which, and that they are one process's whatever the number of ranks.

The reference knows nothing of our objective, batch norm, gather or engines: plain torch in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import on_ranks
from helpers.toy_models import ToyView, distance, heads, images, model, share_of, stage
from torch import Tensor

from embae.datasets.sampling.keyed_random import generator
from embae.trainer.model.embae import EmbAE
from embae.trainer.runtime.distributed import World

PARTS = {"backbone": "frozen", "embedding": "train", "nuisance": "train", "decoder": "train", "discriminator": "train"}
LOSS: dict[str, Any] = {"reconstruction": {}, "adversarial": {"weight": 0.5}, "triplet": {}}
TURNS = ("reconstruction", "discriminator", "adversarial", "triplet")
VIEW = ToyView(pid=np.repeat(range(4), 4), camid=[0, 1, 2, 3] * 2 + [0, 1] * 4)
# Of cameras 0 … 3; the second batch has none of 3, nobody has any of 4.
PLANS = [np.random.default_rng(5).permutation(16), np.array([r for r in range(16) if r not in (3, 7)])]
RATE = 0.05
OPTIMIZERS = {
    "plain": {"name": "sgd", "lr": RATE, "momentum": 0.0},
    "momentum": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
    "clipped": {"name": "adam", "lr": 1e-3},
}


def start() -> tuple[Tensor, EmbAE]:
    inputs = images(len(VIEW)) + images(4, seed=2)[torch.from_numpy(VIEW.pid)]
    return inputs, model(PARTS, heads(5))


def snapshot(made: EmbAE) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in made.state_dict().items()}


@on_ranks(1, 2, 3)
def steps(world: World, folder: Path) -> dict[str, Any]:
    """By optimizer: the state at the start and after each turn of two steps, and what the turns reported."""
    from embae.trainer.model.batch_norm import use_global_batch_norm
    from embae.trainer.training.adversary import Adversary, gaussian_noise, own_parameters
    from embae.trainer.training.engine import Engine
    from embae.trainer.training.objective import Objective

    found: dict[str, Any] = {}
    for name, optimizer in OPTIMIZERS.items():
        if world.world_size > 1 and name != "plain":
            continue
        inputs, made = start()
        use_global_batch_norm(made, sync=True)
        keys = stage(PARTS, LOSS, optimizer=optimizer, clip=0.1 if name == "clipped" else None)
        assert keys.loss
        objective = Objective(made, keys.loss)
        encoders = Engine(objective, keys, largest=16, trained=own_parameters(objective, keys.loss))
        adversary = Engine(Adversary(objective, gaussian_noise(3, "s")), keys, largest=16)
        states, reports = [snapshot(made)], []
        for step, plan in enumerate(PLANS):
            batches = share_of(VIEW, inputs, plan, world.rank, world.world_size, step=step)
            for turn in TURNS:
                objective.active = [turn]
                engine = adversary if turn == "discriminator" else encoders
                report = engine.step(batches, optimizer["lr"])
                reports.append({key: value.item() for key, value in report.items()})
                states.append(snapshot(made))
        assert encoders.state().keys() == states[0].keys()
        encoders.close()
        adversary.close()
        found[name] = {"states": states, "reports": reports}
    return found


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Parts (and nuisance heads) of which a weight is another bit for bit."""
    keys = [key for key in before if not torch.equal(before[key], after[key])
            and not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    return {".".join(key.split(".")[:3]) if key.startswith("nuisance") else key.split(".")[0] for key in keys}


def served(*numbers: int) -> set[str]:
    return {f"nuisance.heads.{number}" for number in numbers}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_turn_moves_the_parts_that_it_goes_through_alone(computed: Callable[..., Any], name: str) -> None:
    """Also where optimizers remember earlier steps, and decay weights."""
    states = computed(steps, 1)[0][name]["states"]
    for step, present in enumerate([(0, 1, 2, 3), (0, 1, 2)]):
        wanted = {
            "reconstruction": {"embedding", "decoder", *served(*present)},
            "discriminator": {"discriminator"},
            "adversarial": {"embedding", *served(*present)},
            "triplet": {"embedding"},
        }
        for number, turn in enumerate(TURNS):
            at = 4 * step + number
            assert moved(states[at], states[at + 1]) == wanted[turn], (step, turn)


def test_the_discriminator_learns_and_is_reported(computed: Callable[..., Any]) -> None:
    reports = computed(steps, 1)[0]["plain"]["reports"]
    for step in range(2):
        reconstruction, discriminator, adversarial, triplet = reports[4 * step:4 * step + 4]
        assert reconstruction["loss"] == pytest.approx(reconstruction["reconstruction"])
        assert "loss" not in discriminator and 0 <= discriminator["told_apart"] <= 1
        assert adversarial["loss"] == pytest.approx(0.5 * adversarial["adversarial"])
        assert triplet["loss"] == pytest.approx(triplet["triplet"])


class Reference:
    """The same steps in plain torch, in one process, in double precision."""

    def __init__(self) -> None:
        inputs, self.model = start()
        self.model.double().train()
        self.states, self.losses = [snapshot(self.model)], []
        for step, plan in enumerate(PLANS):
            with torch.no_grad():
                self.features = self.model.backbone(inputs[torch.from_numpy(plan)].double())
            self.camera, self.person = (torch.from_numpy(values[plan]) for values in (VIEW.camid, VIEW.pid))
            self.noise = torch.from_numpy(
                generator(3, "s", "noise", step).standard_normal((len(plan), 14), dtype=np.float32)).double()
            for turn in TURNS:
                loss, weight, parts = getattr(self, turn)()
                self._descend(weight * loss, parts)
                self.losses.append(loss.item())
                self.states.append(snapshot(self.model))

    def code(self) -> Tensor:
        v = torch.zeros(len(self.features), 6, dtype=torch.float64)
        for camera in self.camera.unique().tolist():
            rows = self.camera == camera
            v[rows] = self.model.nuisance.heads[camera](self.features[rows])
        return torch.cat([self.model.embedding(self.features), v], 1)

    def reconstruction(self) -> tuple[Tensor, float, tuple[str, ...]]:
        error = self.model.decoder(self.code()) - self.features
        return error.square().mean(), 1, ("embedding", "nuisance", "decoder")

    def discriminator(self) -> tuple[Tensor, float, tuple[str, ...]]:
        with torch.no_grad():
            code = self.code()
        p_noise, p_code = (torch.sigmoid(self.model.discriminator(x)) for x in (self.noise, code))
        return -(p_noise.log().mean() + (1 - p_code).log().mean()), 1, ("discriminator",)

    def adversarial(self) -> tuple[Tensor, float, tuple[str, ...]]:
        p_code = torch.sigmoid(self.model.discriminator(self.code()))
        return -p_code.log().mean(), 0.5, ("embedding", "nuisance")

    def triplet(self) -> tuple[Tensor, float, tuple[str, ...]]:
        z, person = self.model.embedding(self.features), self.person
        each = []
        for anchor in range(len(z)):
            to = torch.stack([(z[anchor] - other).norm() if number != anchor else z.new_tensor(-1.0)
                              for number, other in enumerate(z)])
            same = person == person[anchor]
            each.append(F.softplus(to[same].max() - to[~same].min()))
        return torch.stack(each).mean(), 1, ("embedding",)

    def _descend(self, loss: Tensor, parts: tuple[str, ...]) -> None:
        weights = [weight for part in parts for weight in getattr(self.model, part).parameters()]
        for weight, grad in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if grad is not None:
                weight.data.sub_(RATE * grad)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_turns_on_ranks_are_those_of_plain_torch(
    computed: Callable[..., Any], reference: Reference, world_size: int
) -> None:
    """Weights, statistics and losses after each turn; the noise is of the reference's stream, whatever the ranks."""
    ranks = [rank["plain"] for rank in computed(steps, world_size)]
    for number, (turn, loss) in enumerate(zip(TURNS * 2, reference.losses, strict=True)):
        found, wanted = ranks[0]["states"], reference.states
        assert ranks[0]["reports"][number][turn] == pytest.approx(loss, rel=1e-4), (number, turn)
        steps_taken = [{name: (state[number + 1][name].double() - state[number][name].double()) for name in wanted[0]
                        if "tracked" not in name} for state in (found, wanted)]
        error = distance(*steps_taken)
        print(f"{turn}: {error:.1e}")
        assert error < 1e-3, (number, turn)  # of what the turn did
    for rank in ranks[1:]:
        assert rank["reports"] == ranks[0]["reports"]
        assert all(torch.equal(value, rank["states"][-1][name]) for name, value in ranks[0]["states"][-1].items())


def test_the_share_that_is_distinguished_is_over_the_global_batch(computed: Callable[..., Any]) -> None:
    reports = [computed(steps, size)[0]["plain"]["reports"] for size in (1, 2, 3)]
    told = [[report["told_apart"] for report in one if "told_apart" in report] for one in reports]
    assert told[0] == told[1] == told[2]
