"""The rules between keys, and that what the design promises loads as it stands there."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import tiny_run
from pydantic import ValidationError

from embae.trainer.errors import RecipeError
from embae.trainer.losses.registry import TERMS
from embae.trainer.recipe.load import check_recipe, load_recipe
from embae.trainer.recipe.optimizer import OWNED, DeepSpeed, Optimizer, Schedule
from embae.trainer.recipe.schema import Recipe

CONTRACT = """
# EmbAE-cam: one nuisance head per camera. Table 1 and 2, last row.
#   embae train embae-cam data.root=/data/shards
#   torchrun --nproc-per-node 8 -m embae.trainer embae-cam data.root=/data/shards
name: embae-cam
seed: 0
model: {backbone: mobilenetv1_100, embedding: 128, hidden: 1024, nuisance: {dim: 128, per: camera}}
data: {root: shards, sources: [dukemtmc], target: market1501, image: [256, 128]}
run: [embedding, autoencoder, target-nuisance, target-embedding]
evaluate: {Baseline: embedding, EmbAE-cam: target-embedding}    # row of the table: the stage whose export is scored
defaults: {deepspeed: {zero_stage: 1}, precision: bf16, optimizer: {name: adam, lr: 3e-4}}
stages:
  embedding:
    init: hub                         # or random, a weights file, an earlier stage, another run's export; the one owner
    parts: {backbone: train, embedding: train, nuisance: absent, decoder: absent}
    data: {from: sources, P: 18, K: 4, augment: {flip: true}}
    loss: {triplet: {mining: batch-hard, margin: soft}}
    schedule: {constant: 100, decay: 300, final: 3e-7}     # epochs
  autoencoder:
    init: embedding
    deepspeed: {zero_stage: 0}
    parts: {backbone: frozen, embedding: frozen, nuisance: train, decoder: train}
    data: {from: sources, batch: 256}
    loss: {reconstruction: {}}
    epochs: 100
  target-nuisance:
    init: autoencoder
    reinit: [nuisance]
    parts: {backbone: frozen, embedding: frozen, nuisance: train, decoder: frozen}
    data: {from: target, batch: 256}
"""
CONTINUED = """
    deepspeed: {zero_stage: 0}
    loss: {reconstruction: {}}
    epochs: 100
  target-embedding:
    init: target-nuisance
    parts: {backbone: frozen, embedding: train, nuisance: frozen, decoder: train}
    data: {from: target, batch: 256}
    loss: {reconstruction: {}}
    epochs: 100
"""


def test_the_recipe_of_the_contract_loads(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(CONTRACT + CONTINUED)
    found = load_recipe(str(path))
    assert found.stages["embedding"].lr_schedule.final == 3e-7
    assert found.stages["embedding"].deepspeed.zero_stage == 1 and found.stages["autoencoder"].deepspeed.zero_stage == 0
    assert found.stages["target-embedding"].precision == "bf16"
    assert found.stages["autoencoder"].trained() == ["nuisance", "decoder"]
    assert found.stages["embedding"].data.labelled and not found.stages["autoencoder"].data.labelled


STAGE = {
    "parts.backbone: cannot be absent; set it to train or frozen": {"parts__backbone": "absent"},
    "parts: no part trains; set at least one part to train": {
        "parts__backbone": "frozen", "parts__embedding": "frozen"},
    "parts: expected train, frozen or absent for every part; missing: decoder": {"parts__decoder": None},
    "parts.nuisance: only trains with a loss of reconstruction or adversarial": {"parts__nuisance": "train"},
    "parts.decoder: reconstruction needs it; it cannot be absent": {
        "loss__reconstruction": {}, "parts__nuisance": "train", "data": {"from": "sources", "P": 2, "K": 2}},
    "reinit: names decoder, which is absent; set parts.decoder to train or leave it out": {"reinit": ["decoder"]},
    "batch_norm.nuisance: only backbone and embedding can be normalised by camera; set it to batch or running": {
        "batch_norm": {"nuisance": "camera"}},
    "epochs: give one of epochs, steps, schedule, found epochs and schedule (null removes one)": {
        "schedule": {"constant": 3}},
    "epochs: give one of epochs, steps, schedule": {"epochs": None},
    "data.batch: give either P and K (labelled images) or batch (any images)": {"data__batch": 8},
    "data.K: missing; a labelled stage needs both P and K": {"data__K": None},
    "data.P: missing; a labelled stage needs both P and K": {"data__P": None},
    "data.weights: mix: true draws each batch from all datasets, which do not take turns; give weights or mix": {
        "data__mix": True, "data__weights": {"square": 1}},
    "data.P: found a number for each dataset; expected one number, as mix: true draws each batch from all datasets": {
        "data__mix": True, "data__P": {"square": 2, "tower": 2}},
    "data.K: the triplet loss needs at least 2": {"data__K": 1},
    "data.P: the triplet loss needs at least 2": {"data__P": {"square": 1, "tower": 4}},
    "accumulate: a mined loss sees the whole global batch, so this must be 1": {"accumulate": 2},
    "loss.triplet: needs identities; give data.P and data.K instead of data.batch": {
        "data": {"from": "target", "batch": 8}},
    f"loss: name at least one of {', '.join(TERMS)}": {"loss": {}},
    "data: labels are not used without a loss that needs identities; give batch instead of P and K": {
        "loss": {"reconstruction": {}}, "parts__nuisance": "train", "parts__decoder": "train"},
    "optimizer.lr: found 0; expected greater than 0": {"optimizer": {"lr": 0}},
    "optimizer.lr: found '1e-4'; expected a valid number": {"optimizer": {"lr": "1e-4"}},
    "optimizer.lr: found inf; expected a finite number": {"optimizer": {"lr": float("inf")}},
    "optimizer.betas.1: found 1.0; expected less than 1": {"optimizer": {"betas": [0.9, 1.0]}},
    "data.K: found True; expected a valid integer": {"data__K": True},
    "schedule.decay: give decay or cosine, not both": {
        "epochs": None, "schedule": {"decay": 1, "cosine": 1, "final": 1e-6}},
    "schedule.final: exponential decay needs the learning rate it ends at, above 0": {
        "epochs": None, "schedule": {"decay": 1}},
    "schedule.final: has no effect without decay or cosine; give one of them": {
        "epochs": None, "schedule": {"constant": 1, "final": 1e-6}},
    "schedule: give the length in epochs of at least one of warmup, constant, decay, cosine": {
        "epochs": None, "schedule": {}},
    "schedule.final: 1.0 is above optimizer.lr, 0.001, which decays to it; lower it": {
        "epochs": None, "schedule": {"cosine": 1, "final": 1.0}},
}  # fmt: skip

_CALIBRATED = {
    "parts": {"backbone": "frozen", "embedding": "frozen", "nuisance": "absent", "decoder": "absent"},
    "data": {"from": "target", "batch": 8}, "loss": None, "epochs": None, "calibrate": {"what": "batch-norm"},
}  # fmt: skip
_CLUSTERED = {**_CALIBRATED, "calibrate": None, "cluster": {"kmeans": {"clusters": 3}}}
_ADVERSARIAL = {
    "parts": {"backbone": "frozen", "embedding": "train", "nuisance": "train", "decoder": "train",
              "discriminator": "train"},
    "data": {"from": "target", "batch": 8}, "loss": {"reconstruction": {}, "adversarial": {}},
}  # fmt: skip
_CODES = {**_ADVERSARIAL["parts"], "embedding": "frozen", "nuisance": "frozen"}
_PSEUDO = "data.labels: pseudo-labels belong to the target; use them with from: target or all, P and K"
STAGE |= {
    f"{_PSEUDO}": {"data__labels": "autoencoder"},
    "data.batch: give either P and K (labelled images) or batch (any images) ": {
        "data": {"from": "target", "labels": "autoencoder", "batch": 8, "P": 2, "K": 2}},
    "loss: give one of loss, calibrate, cluster": {"loss": None},
    "calibrate: give one of loss, calibrate, cluster": {"calibrate": {"what": "features"}},
    "cluster: give one of loss, calibrate, cluster": {"cluster": {"dbscan": {}}},
    "cluster: give one of loss, calibrate, cluster ": {**_CALIBRATED, "cluster": {"dbscan": {}}},
    "calibrate.per: features is calibrated by camera; use camera, as only batch-norm can use dataset": {
        **_CALIBRATED, "calibrate": {"what": "features", "per": "dataset"}},
    "calibrate.per: embedding is calibrated by camera; use camera, as only batch-norm can use dataset": {
        **_CALIBRATED, "calibrate": {"what": "embedding", "per": "dataset"}},
    "calibrate.what: missing": {**_CALIBRATED, "calibrate": {}},
    "calibrate.what: found 'bn'; expected 'batch-norm', 'features' or 'embedding'": {
        **_CALIBRATED, "calibrate": {"what": "bn"}},
    "calibrate.what: the model has no embedding; use features": {
        **_CALIBRATED, "parts__embedding": "absent", "calibrate": {"what": "embedding"}},
    "parts.backbone: trains, but a stage with calibrate trains nothing; set it to frozen or absent": {
        **_CALIBRATED, "parts__backbone": "train"},
    "parts.embedding: trains, but a stage with cluster trains nothing; set it to frozen or absent": {
        **_CLUSTERED, "parts__embedding": "train"},
    "data: calibrate reads the unlabelled target; give from: target and a batch": {
        **_CALIBRATED, "data": {"from": "sources", "batch": 8}},
    "data: cluster reads the unlabelled target; give from: target and a batch": {
        **_CLUSTERED, "data": {"from": "target", "P": 2, "K": 2}},
    "reinit: belongs to stages that train; leave it out": {**_CALIBRATED, "reinit": ["embedding"]},
    "epochs: belongs to stages that train; leave it out": {**_CALIBRATED, "epochs": 2},
    "schedule: belongs to stages that train; leave it out": {**_CLUSTERED, "schedule": {"constant": 1}},
    "cluster: give one of kmeans, dbscan, linkage": {**_CLUSTERED, "cluster": {}},
    "cluster: give one of kmeans, dbscan, linkage ": {
        **_CLUSTERED, "cluster": {"kmeans": {"clusters": 3}, "dbscan": {}}},
    "cluster.kmeans.clusters: missing": {**_CLUSTERED, "cluster": {"kmeans": {}}},
    "cluster.kmeans.similarity: found 1.5; expected less than or equal to 1": {
        **_CLUSTERED, "cluster": {"kmeans": {"clusters": 3, "similarity": 1.5}}},
    "cluster.dbscan.epps: unknown key; did you mean eps?": {**_CLUSTERED, "cluster": {"dbscan": {"epps": 0.5}}},
    "loss.identity: needs identities; give data.P and data.K instead of data.batch": {
        "data": {"from": "target", "batch": 8}, "loss": {"identity": {}}, "parts__classifier": "train"},
    "parts.classifier: identity needs it; it cannot be absent": {"loss": {"identity": {}}},
    "parts.classifier: only trains with a loss of identity": {"parts__classifier": "train"},
    "parts.discriminator: only trains with a loss of adversarial": {"parts__discriminator": "train"},
    "loss.identity.smoothing: found 1.0; expected less than 1": {
        "loss": {"identity": {"smoothing": 1.0}}, "parts__classifier": "train"},
    "deepspeed.zero_stage: updates in turn leave the other parts unmoved at stage 0 only; set it to 0": {
        **_ADVERSARIAL, "deepspeed": {"zero_stage": 1}},
    "accumulate: must be 1 where updates take turns": {**_ADVERSARIAL, "accumulate": 2},
    "loss.adversarial: goes with reconstruction": {**_ADVERSARIAL, "loss": {"adversarial": {}}},
    "parts.discriminator: adversarial needs it; it cannot be absent": {
        **_ADVERSARIAL, "parts__discriminator": "absent"},
    "parts.discriminator: is frozen, but adversarial trains it; set it to train": {
        **_ADVERSARIAL, "parts__discriminator": "frozen"},
    "loss.adversarial: has separate updates here, and none of the parts that it goes through trains": {
        **_ADVERSARIAL, "parts": _CODES},
    "loss.triplet: has separate updates here, and none of the parts that it goes through trains": {
        "loss": {"reconstruction": {}, "adversarial": {}, "triplet": {}},
        "parts": {**_CODES, "nuisance": "train"}},
    "parts.embedding: reconstruction needs it; it cannot be absent": {
        **_ADVERSARIAL, "parts__embedding": "absent", "loss": {"reconstruction": {}}, "parts__discriminator": "absent"},
}  # fmt: skip


@pytest.mark.parametrize("message", STAGE)
def test_rules_of_a_stage(message: str) -> None:
    tree = tiny_run.tree()
    at = tree["stages"]["embedding"]
    for path, value in STAGE[message].items():
        *keys, last = path.split("__")
        within = functools.reduce(dict.__getitem__, keys, at)
        within[last] = copy.deepcopy(value)  # null takes away, also what is not there
    with pytest.raises(RecipeError) as caught:
        check_recipe(tree, "tiny")
    assert f"  stages.embedding.{message.strip()}" in str(caught.value).splitlines(), str(caught.value)


def test_several_rules_are_reported_at_once() -> None:
    tree = tiny_run.tree(
        stages__embedding__data__K=1,
        stages__embedding__accumulate=2,
        stages__embedding__parts__decoder="train",
        stages__autoencoder__data__mix=True,
    )
    with pytest.raises(RecipeError, match="4 mistakes"):
        check_recipe(tree, "tiny")


RUN = {
    "run: names the stage nothing, which is not in stages": {"run": ["embedding", "nothing"], "evaluate": {}},
    "run: names the stage embedding twice; remove one": {"run": ["embedding", "embedding"], "evaluate": {}},
    "run: found []; expected at least 1 item": {"run": [], "evaluate": {}},
    "stages.autoencoder.init: is the stage embedding, which run does not list before it": {
        "run": ["autoencoder", "embedding"], "evaluate": {}},
    "stages.embedding.init: is the stage embedding, which run does not list before it": {
        "stages__embedding__init": "embedding"},
    "evaluate.Row: is the stage autoencoder, which is not in run": {
        "run": ["embedding"], "evaluate": {"Row": "autoencoder"}},
    "data.sources: names square twice; remove one": {"data__sources": ["square", "tower", "square"]},
    "stages.autoencoder.reinit: embedding has no decoder, so it starts from new weights; leave it out": {
        "stages__autoencoder__reinit": ["decoder"]},
    "stages.autoencoder.parts.decoder: is frozen, but its init embedding has none; set it to train or absent": {
        "stages__autoencoder__parts__decoder": "frozen"},
    "stages.autoencoder.deepspeed.zero_stage: is 1, but only ZeRO stage 0 leaves the nuisance heads": {
        "stages__autoencoder__deepspeed": {"zero_stage": 1}},
    "name: found 'a/b'; expected letters, digits, _ and -": {"name": "a/b"},
    "name: found '..'; expected letters, digits, _ and -": {"name": ".."},
    "data.threads: found 0; expected greater than or equal to 1": {"data__threads": 0},
    "seed: found -1; expected greater than or equal to 0": {"seed": -1},
    "model.pooling: found 'max'; expected 'avg' or 'gem'": {"model__pooling": "max"},
    "stages.embedding.parts.embedding: with model.head: bnneck the triplet loss uses the features": {
        "model__head": "bnneck"},
    "stages.embedding.loss.triplet: with model.head: bnneck the triplet loss uses the features": {
        "model__head": "bnneck", "stages__embedding__parts__backbone": "frozen"},
}  # fmt: skip

_MIDDLE = {
    "init": "embedding", "parts": {"backbone": "frozen", "embedding": "frozen", "nuisance": "absent",
                                   "decoder": "absent"},
    "data": {"from": "target", "batch": 8},
}  # fmt: skip
_LABELS = {**_MIDDLE, "cluster": {"kmeans": {"clusters": 3}}}
_READS = {**tiny_run.tree()["stages"]["embedding"], "init": "embedding",
          "data": {"from": "target", "P": 2, "K": 2, "labels": "autoencoder"}}  # fmt: skip
RUN |= {
    "evaluate.Row: is the stage autoencoder, which computes labels and not a model": {
        "run": ["embedding", "autoencoder"], "stages__autoencoder": _LABELS, "evaluate": {"Row": "autoencoder"}},
    "stages.target-nuisance.init: is the stage autoencoder, which computes labels and not a model": {
        "stages__autoencoder": _LABELS},
    "stages.target-nuisance.data.labels: is autoencoder, which is not a stage with cluster": {
        "stages__target-nuisance": _READS},
    "stages.target-nuisance.data.labels: is clusters, which is not a stage with cluster": {
        "stages__target-nuisance": {**_READS, "data": {**_READS["data"], "labels": "clusters"}}},
    "stages.target-nuisance.data.labels: is the stage autoencoder, which run does not list before it": {
        "stages__autoencoder": _LABELS, "stages__target-nuisance": _READS, "evaluate": {},
        "run": ["embedding", "target-nuisance", "autoencoder"]},
    "stages.target-embedding.parts.nuisance: is frozen, but its init autoencoder has none; set it to train or absent": {
        "stages__autoencoder": {**_MIDDLE, "calibrate": {"what": "batch-norm"}},
        "stages__target-embedding__init": "autoencoder"},
}  # fmt: skip


@pytest.mark.parametrize("message", RUN)
def test_rules_of_a_run(message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_recipe(tiny_run.tree(**RUN[message]), "tiny")
    assert any(line.startswith(f"  {message}") for line in str(caught.value).splitlines()), str(caught.value)


@pytest.mark.parametrize("name", ["hub", "random", "tensorboard", "evaluation", "cache"])
def test_stage_names_with_another_meaning_are_refused(name: str) -> None:
    tree = tiny_run.tree(run=[name], evaluate={})
    tree["stages"] = {name: tree["stages"]["embedding"]}
    with pytest.raises(RecipeError, match=f"stages.{name}: the name is reserved"):
        check_recipe(tree, "tiny")


@pytest.mark.parametrize(
    "per, zero, refused", [("shared", 2, False), ("dataset", 1, True), ("camera", 3, True), ("camera", 0, False)]
)
def test_several_heads_train_at_zero_0_only(per: str, zero: int, refused: bool) -> None:
    tree = tiny_run.tree(model__nuisance__per=per, stages__autoencoder__deepspeed={"zero_stage": zero})
    tree["stages"]["embedding"]["deepspeed"] = {"zero_stage": 3}  # no heads there
    if refused:
        with pytest.raises(RecipeError, match="set it to 0"):
            check_recipe(tree, "tiny")
    else:
        assert check_recipe(tree, "tiny").stages["autoencoder"].deepspeed.zero_stage == zero


@pytest.mark.parametrize("key", [*OWNED, "zero"])
def test_deepspeed_keys_with_an_owner_are_refused(key: str) -> None:
    keys = {"zero": {"stage": 1}} if key == "zero" else {key: {"enabled": True}}
    with pytest.raises(RecipeError, match="the recipe has its own key for this; set ") as caught:
        check_recipe(tiny_run.tree(stages__embedding__deepspeed=keys), "tiny")
    assert f"stages.embedding.deepspeed.{key}" in str(caught.value)


def test_other_deepspeed_keys_pass() -> None:
    keys = {"wall_clock_breakdown": True, "zero": {"reduce_bucket_size": 5}, "comms_logger": {"enabled": True}}
    found = check_recipe(tiny_run.tree(stages__embedding__deepspeed=keys), "tiny").stages["embedding"].deepspeed
    assert found.model_extra == {"wall_clock_breakdown": True, "comms_logger": {"enabled": True}}
    assert found.zero == {"reduce_bucket_size": 5} and found.zero_stage == DeepSpeed().zero_stage == 0


def test_models_are_frozen_and_hold_what_was_given() -> None:
    tree = tiny_run.tree()
    before = copy.deepcopy(tree)
    found = check_recipe(tree, "tiny")
    assert tree == before
    with pytest.raises(ValidationError):
        found.seed = 3  # type: ignore[misc]


def test_every_default_is_itself_allowed() -> None:
    found = Recipe.model_validate(check_recipe(tiny_run.tree(), "tiny").model_dump(by_alias=True))
    assert found == check_recipe(tiny_run.tree(), "tiny")
    assert Optimizer.model_validate(Optimizer().model_dump()) == Optimizer()
    assert Schedule(warmup=1, constant=2, decay=3, final=1e-5).epochs == 6


def test_shipped_recipes_are_those_of_the_paper() -> None:
    cam: Any = load_recipe("embae-cam")
    contract = yaml.safe_load(CONTRACT + CONTINUED)
    first = cam.stages["embedding"]
    assert (first.data.P, first.data.K, first.optimizer.lr, first.optimizer.name) == (18, 4, 3e-4, "adam")
    assert (first.schedule.constant, first.schedule.decay, first.schedule.final) == (100, 300, 3e-7)
    assert cam.run == contract["run"] and cam.model.nuisance.per == "camera"
    for name in cam.run:
        assert cam.stages[name].parts == contract["stages"][name]["parts"]
        assert cam.stages[name].init == contract["stages"][name]["init"]
