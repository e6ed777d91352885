"""``embae train --dry-run``: what it says of a rank is what real ranks keep and send, and it starts nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_run
from helpers.ranks import on_ranks
from helpers.tiny_run import embae
from helpers.toy_models import KEYS, NECK, RECONSTRUCTION, TRIPLET, ToyView, heads, images, parts_in, share_of, stage

from embae.datasets.sampling.sampler import share
from embae.trainer.recipe.stage import Stage
from embae.trainer.runtime.distributed import World
from embae.trainer.training.objective import BatchForm, Objective

pytestmark = pytest.mark.ranks

BUCKET = 300_000  # elements; more than the model has
LARGEST = 4096  # elements of a parameter
# By world size, cases and ZeRO stages: not all of them, since each engine takes a second.
TAKEN = {
    1: [("bf16", 1), ("bf16", 3)],
    2: [("mined", 0), ("mined", 1), ("mined", 3), ("bf16", 1), ("bf16", 3), *(("parts", zero) for zero in range(4)),
        ("in turn", 0), ("memory", 0), ("memory", 2), ("strong", 1), ("strong", 3), ("cameras", 0)],
    4: [("parts", 0), ("parts", 1), ("parts", 3)],
}  # fmt: skip
VIEW = ToyView(pid=[number // 4 for number in range(18)], camid=[0] * 18)
PLAN = np.arange(18)


def case(name: str, zero: int) -> Stage:
    """A stage of which everything that an estimate looks at differs from those of the other cases."""
    zeros: dict[str, Any] = {"reduce_bucket_size": BUCKET} if zero and name == "bf16" else {}
    if zero == 3 and name == "parts":
        zeros["stage3_param_persistence_threshold"] = 0
    keys: dict[str, Any] = {"optimizer": {"name": "adam"}, "deepspeed": {"zero_stage": zero, "zero": zeros}}
    whole = parts_in("train", "train")
    if name == "cameras":
        return stage(whole, TRIPLET, **keys, batch_norm={"embedding": "camera"})
    if name == "mined":
        return stage(whole, TRIPLET, **keys, ema=0.9)
    if name == "strong":
        both = {**TRIPLET, "identity": {"smoothing": 0.1}}
        return stage({**whole, "classifier": "train"}, both, **keys, ema=0.9)
    if name == "bf16":
        keys["optimizer"] = {"name": "sgd", "momentum": 0.9}
        return stage(whole, TRIPLET, **keys, precision="bf16", clip=1.0)
    if name == "memory":
        return stage(whole, {"memory": {}, "proxies": {}}, **keys, accumulate=2,
                     data={"from": "sources", "P": 4, "K": 4})
    if name == "parts":
        return stage(parts_in("frozen", "train", "frozen", "train"), RECONSTRUCTION, **keys, accumulate=2)
    adversarial = {**TRIPLET, **RECONSTRUCTION, "memory": {}, "adversarial": {}}
    return stage({**parts_in("frozen", "train", "train", "train"), "discriminator": "train"}, adversarial, **keys)


def made(keys: Stage) -> Objective:
    """Its objective, over weights of any values."""
    from embae.trainer.model.batch_norm import use_global_batch_norm
    from embae.trainer.model.camera_tables import extend_tables
    from embae.trainer.model.domain import ModelDomain
    from embae.trainer.model.embae import EmbAE
    from embae.trainer.model.known_cameras import KnownCameras

    with torch.random.fork_rng(devices=[]):
        of, labels = NECK if keys.loss.identity else KEYS, heads(1) if keys.use("nuisance") != "absent" else []
        cameras = [("toy", camid) for camid in range(3)] if keys.batch_norm else []
        model = EmbAE(of, keys.parts, ModelDomain(labels, 5, KnownCameras(cameras)))
    for part in keys.normalised("camera"):
        extend_tables(getattr(model, part), len(model.cameras), trains=True)
    use_global_batch_norm(model, sync=True)
    found = keys.loss.build_states(VIEW, model.z)  # type: ignore[union-attr, arg-type]
    return Objective(model.train(), keys.loss, found, BatchForm(keys.accumulate))  # type: ignore[arg-type]


def nbytes(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes of the storages that tensors lie in, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return {storage._cdata: storage.nbytes() for storage in storages}


class Watched:
    """The real engines of a stage; what they keep is looked at in every phase of a step."""

    def __init__(self, keys: Stage, world: World):
        from embae.trainer.training.adversarial_updates import build_updates
        from embae.trainer.training.adversary import gaussian_noise

        self.objective = made(keys)
        self.most: dict[str, int] = defaultdict(int)
        largest = -(-len(PLAN) // (world.world_size * keys.accumulate))
        self.updates = build_updates(self.objective, keys, gaussian_noise(0, "stage"), largest=largest)
        self.batches = share_of(VIEW, images(18), PLAN, world.rank, world.world_size, keys.accumulate)
        engines = [getattr(self.updates, name) for name in ("engine", "adversary") if hasattr(self.updates, name)]
        self.outer = [engine.optimizer for engine in engines]
        self.optimizers = [getattr(one, "optimizer", one) for one in self.outer]
        self.saved: dict[int, int] = {}
        for engine in engines:
            engine.module.register_forward_pre_hook(self._begin)
            engine.module.register_forward_hook(self._between)
            for parameter in engine.module.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(self._backward)
        self.optimizers[0].register_step_pre_hook(self._update)

    def parameters(self) -> list[Any]:
        return list(self.objective.parameters())

    def see(self, what: str, tensors: Iterable[Any]) -> None:
        self.most[what] = max(self.most[what], sum(nbytes(tensors).values()))

    def _begin(self, _: Any, args: Any) -> None:
        self.saved = nbytes([args[0].inputs])
        self.see("between", [parameter.grad for parameter in self.parameters()])

    def _between(self, *_: Any) -> None:
        pieces = [getattr(parameter, "ds_tensor", None) for parameter in self.parameters()]
        self.see("weights", [*self.parameters(), *pieces, *self.objective.buffers()])
        self.most["activations"] = max(self.most["activations"], sum(self.saved.values()))

    def _backward(self, _: torch.Tensor) -> None:
        buckets = [bucket.buffer for bucket in getattr(self.outer[0], "ipg_buckets", {}).values()]
        self.see("exchange", [one for found in buckets for one in (found if isinstance(found, list) else [found])])

    def _update(self, *_: Any) -> None:
        moved = [parameter for one in self.optimizers for group in one.param_groups for parameter in group["params"]]
        self.see("gradients", [parameter.grad for parameter in moved])

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.saved |= nbytes([tensor])
        return tensor

    def step(self) -> None:
        """One step, and what there is after it."""
        model = nbytes([*self.parameters(), *self.objective.buffers()])

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if tensor.untyped_storage()._cdata in model else self._keep(tensor)

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.updates.step(self.batches, 1e-3)
        pieces = [getattr(parameter, "ds_tensor", None) for parameter in self.parameters()]
        flat = [one for outer in self.outer for one in getattr(outer, "fp32_partitioned_groups_flat", [])]
        moved = [parameter for one in self.optimizers for group in one.param_groups for parameter in group["params"]]
        states = [value for one in self.optimizers for state in one.state.values() for value in state.values()]
        weights = nbytes([*self.parameters(), *pieces])
        own = nbytes([*states, *flat, *moved])
        self.most["optimizer"] = sum(size for place, size in own.items() if place not in weights)
        self.see("average", self.updates.average.averages if self.updates.average else [])


@on_ranks(1, 2, 4)
def kept_and_sent(world: World, folder: Path) -> dict[str, dict[str, float]]:
    """What ranks keep and send in a step, by case and ZeRO stage."""
    from embae.trainer.performance.exchanges import Recorder, bytes_sent

    found: dict[str, dict[str, float]] = {}
    for name, zero in TAKEN[world.world_size]:
        watched = Watched(case(name, zero), world)
        for _ in range(2):  # DeepSpeed learns what follows what in the first
            watched.step()
        with Recorder() as recorder:
            watched.step()
        found[f"{name} {zero}"] = {**watched.most, "sent": sum(map(bytes_sent, recorder.calls))}
        watched.updates.close()
    return found


def estimated(name: str, zero: int, world_size: int) -> dict[str, float]:
    from embae.datasets.loading.batch import Batch
    from embae.trainer.performance.estimate import owned, passes, pretended, rank_memory, sent, size_of
    from embae.trainer.training.adversary import gaussian_noise, updates_in_turn

    keys = case(name, zero)
    parts = world_size * keys.accumulate
    largest = max(range(parts), key=lambda part: len(PLAN[share(len(PLAN), part, parts)]))
    slots = share(len(PLAN), largest, parts)
    objective = made(keys)
    turns = updates_in_turn(objective, keys.loss, gaussian_noise(0, "stage"))  # type: ignore[arg-type]
    with pretended(objective, largest // keys.accumulate, world_size):
        inputs = torch.empty(slots.stop - slots.start, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        went = passes(turns, Batch(inputs, PLAN[slots], PLAN, slots, 0, VIEW), keys)  # type: ignore[arg-type]
        engines, averaged = owned(turns, keys), [value for value in objective.buffers() if value.is_floating_point()]
        found = rank_memory(engines, keys, world_size, zero, buffers=size_of(objective.buffers()),
                       averaged=size_of(averaged))  # fmt: skip
    return {**vars(found), "activations": went.activations, "sent": went.sent + sent(engines, keys, world_size, zero)}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_estimates_are_what_ranks_keep_and_send(world_size: int, computed: Callable[..., Any]) -> None:
    ranks = computed(kept_and_sent, world_size)
    for which, real in ranks[0].items():
        name, zero = which[:-2], int(which[-1])
        found, accumulate = estimated(name, zero, world_size), case(name, zero).accumulate
        said = f"{which} on {world_size}: {found} {real}"
        for key in ("optimizer", "average"):
            assert found[key] == real[key], f"{key} {said}"
        # Whether a gradient overflowed, and its norm, are single numbers, which are left out.
        assert 0 <= real["sent"] - found["sent"] <= 16, f"sent {said}"
        if zero:
            assert found["exchange"] == real["exchange"], f"exchange {said}"
            # Of four ranks one has a piece within a single parameter: the gradient of all of that is kept.
            more = real["gradients"] + real["between"] - found["gradients"]
            assert 0 <= more <= (4 * LARGEST if world_size == 4 and zero < 3 else 0), f"gradients {said}"
            assert bool(real["between"]) == (zero == 1 and accumulate > 1), f"between {said}"
        else:  # those of parts that a turn leaves alone are taken away before the update
            assert 0.95 * found["gradients"] <= real["gradients"] <= found["gradients"], f"gradients {said}"
        if which != "parts 3":
            assert found["weights"] == real["weights"], f"weights {said}"
        else:  # large weights come and go while the model is walked through; how many at once is not said
            assert real["weights"] < found["weights"], f"weights {said}"
        # A CPU kernel keeps statistics of a bfloat16 batch in single precision; and at ZeRO 3 some of what is kept are
        # gathered weights, which lie elsewhere than before.
        activations = max(rank[which]["activations"] for rank in ranks)
        if zero < 3:
            tolerance = 0.01 if name == "bf16" else 0.0
            assert abs(found["activations"] - activations) <= tolerance * activations, f"activations {said}"


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "shards").symlink_to(tiny_run.shards())
    tiny_run.write(tmp_path, tiny_run.tree(stages__embedding__precision="bf16", stages__embedding__ema=0.9))
    code = "import atexit, sys; atexit.register(lambda: print({'deepspeed', 'nvidia.dali'} & set(sys.modules)));"
    words = ("train", "tiny.yaml", "--dry-run", "--world-size", 5, "--json", "out/needs.json")
    done = tiny_run.program("-c", f"{code} from embae.trainer.commands.app import main; main()", *words, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shards", "tiny.yaml"]
    lines, found = done.stdout.splitlines(), json.loads((tmp_path / "out" / "needs.json").read_text())
    assert lines[0].startswith("tiny on 5 ranks: recipe and data are fine. ")
    assert lines[-1] == "set()" and lines[-2] == found["left_out"] and found["world_size"] == 5
    embedding, autoencoder, nuisance, _ = found["stages"]
    assert (embedding["images"], embedding["epoch_steps"], embedding["rows"]) == (64, 11, [1, 2])
    assert list(embedding["memory"]) == list("0123") and embedding["memory"]["0"]["average"] > 0
    assert list(autoencoder["memory"]) == ["0"] and autoencoder["inputs"] == "features"
    assert autoencoder["rows"] == [1, 2] and not autoencoder["at_most"]
    # Two heads for the target's cameras, four for those of the sources.
    assert nuisance["memory"]["0"]["weights"] < autoencoder["memory"]["0"]["weights"]
    for one in found["stages"]:
        for zero, kept in one["memory"].items():
            assert one["together"][zero] == sum(kept.values()) + one["activations"] and one["sent"][zero] > 0


def test_a_dry_run_of_pseudo_labels_gives_bounds(tmp_path: Path) -> None:
    done = embae("train", "pul", "rounds=1", "--settings", small_pul(tmp_path), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert "cluster-1: trains nothing (cluster)" in lines
    assert any(line.startswith("retrain-1: at most 32 images, 8 steps an epoch, ") for line in lines), done.stdout


def small_pul(folder: Path) -> str:
    path = folder / "small.yaml"
    path.write_text(f"""
model: {{backbone: test_byobnet, embedding: 8, hidden: 16}}
data: {{root: {tiny_run.shards()}, sources: [square, tower], target: park, image: [32, 16]}}
stages:
  classification: {{init: random, data: {{P: 3, K: 2}}}}
  cluster: {{data: {{batch: 16}}, cluster: {{kmeans: {{clusters: 6}}}}}}
  retrain: {{data: {{P: 2, K: 2}}}}
""")
    return str(path)


@pytest.mark.parametrize("words, said", [
    (["--dry-run", "--world-size", "256"], "stages.embedding.data: a global batch of 6 images cannot be shared by 256 "
     "ranks; "),
    (["--world-size", "2"], "--world-size: is only for --dry-run"),
    (["--json", "needs.json"], "--json: is only for --dry-run"),
    (["--dry-run", "data.target=lake"], "lake: no such dataset"),
])  # fmt: skip
def test_what_is_wrong_is_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    tiny_run.write(tmp_path, tiny_run.tree(data__root=str(tiny_run.shards())))
    done = embae("train", "tiny.yaml", *words, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]

