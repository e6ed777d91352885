"""Rounds and settings: recipes as they are written become plain stages, and those that ship are those of the paper."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import tiny_run

from embae.trainer.errors import RecipeError
from embae.trainer.recipe.load import check_recipe, dump_recipe, load_recipe
from embae.trainer.recipe.rounds import expand_rounds
from embae.trainer.recipe.schema import Recipe
from embae.trainer.recipe.shipped import SETTINGS, shipped_names
from embae.trainer.recipe.stage import PARTS, Stage

_PARTS = {"backbone": "train", "embedding": "absent", "nuisance": "absent", "decoder": "absent", "classifier": "train"}
_LABELLED = {"from": "sources", "P": 4, "K": 2}
PUL: dict[str, Any] = {
    "name": "rounds",
    "data": {"sources": ["square"], "target": "park"},
    "run": ["classify", ["cluster", "retrain"]],
    "rounds": 3,
    "evaluate": {"Start": "classify", "End": "retrain"},
    "stages": {
        "classify": {
            "init": "random", "parts": dict(_PARTS), "data": _LABELLED, "loss": {"identity": {}}, "epochs": 1,
        },
        "cluster": {
            "init": "classify", "next_init": "retrain",
            "parts": {**_PARTS, "backbone": "frozen", "classifier": "absent"},
            "data": {"from": "target", "batch": 8}, "cluster": {"kmeans": {"clusters": 5}},
        },
        "retrain": {
            "init": "classify", "reinit": ["classifier"], "parts": dict(_PARTS), "epochs": 2,
            "data": {**_LABELLED, "from": "target", "labels": "cluster"}, "loss": {"identity": {}},
        },
    },
}  # fmt: skip


def written(**changes: Any) -> dict[str, Any]:
    """`PUL` with changes by dotted path, ``.`` written ``__``; None takes a key away."""
    made = copy.deepcopy(PUL)
    for path, value in changes.items():
        at, keys = made, path.split("__")
        for key in keys[:-1]:
            at = at[key]
        if value is None:
            del at[keys[-1]]
        else:
            at[keys[-1]] = value
    return made


def refused(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check_recipe(tree, "here")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"here: {len(lines) - 1} mistake{'s' * (len(lines) > 2)} in the recipe"
    return [line.strip() for line in lines[1:]]


def file(folder: Path, content: dict[str, Any] | str, name: str = "own.yaml") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return str(path)


# Rounds


def test_rounds_are_written_out() -> None:
    found = check_recipe(written(), "here")
    assert found.run == ["classify", "cluster-1", "retrain-1", "cluster-2", "retrain-2", "cluster-3", "retrain-3"]
    assert list(found.stages) == found.run
    assert [found.stages[f"cluster-{number}"].init for number in (1, 2, 3)] == ["classify", "retrain-1", "retrain-2"]
    assert [found.stages[f"retrain-{number}"].init for number in (1, 2, 3)] == ["classify"] * 3
    assert [found.stages[f"retrain-{n}"].data.labels for n in (1, 2, 3)] == ["cluster-1", "cluster-2", "cluster-3"]
    assert found.evaluate == {"Start": "classify", "End": "retrain-3"}
    plain = {"init", "data"}
    for name in ("cluster", "retrain"):
        first, *later = (found.stages[f"{name}-{number}"].model_dump(exclude=plain) for number in (1, 2, 3))
        assert later == [first, first]


def test_lineage_and_start_go_through_the_rounds() -> None:
    found = check_recipe(written(), "here")
    assert found.lineage("retrain-3") == found.run
    assert found.lineage("retrain-1") == ["classify", "cluster-1", "retrain-1"]
    assert found.start("End") == "Start" and found.start("Start") is None


def test_init_within_a_round_is_of_that_round_and_next_init_of_the_one_before() -> None:
    frozen = {"backbone": "frozen", "embedding": "absent", "nuisance": "absent", "decoder": "absent"}
    tree = written(stages__again={"init": "retrain", "parts": frozen, "data": {"from": "target", "batch": 8},
                                  "calibrate": {"what": "features"}})
    tree["run"] = ["classify", ["cluster", "retrain", "again"]]
    tree["stages"]["cluster"]["next_init"] = "again"
    stages = check_recipe(tree, "here").stages
    assert [stages[f"again-{number}"].init for number in (1, 2, 3)] == ["retrain-1", "retrain-2", "retrain-3"]
    assert [stages[f"cluster-{number}"].init for number in (1, 2, 3)] == ["classify", "again-1", "again-2"]


def test_stages_between_and_several_brackets() -> None:
    tree = written(run=["classify", ["cluster", "retrain"], "last"], rounds=2)
    tree["stages"]["last"] = {**tree["stages"]["classify"], "init": "classify"}
    assert check_recipe(tree, "here").run == ["classify", "cluster-1", "retrain-1", "cluster-2", "retrain-2", "last"]
    tree = written(run=["classify", ["cluster"], ["retrain"]], rounds=2, stages__cluster__next_init=None)
    tree["stages"]["retrain"]["data"]["labels"] = "cluster-2"
    assert check_recipe(tree, "here").run == ["classify", "cluster-1", "cluster-2", "retrain-1", "retrain-2"]


def test_without_rounds_brackets_are_one_round_and_rounds_without_brackets_do_nothing() -> None:
    assert check_recipe(written(rounds=None), "here").run == ["classify", "cluster-1", "retrain-1"]
    tree = tiny_run.tree()
    assert check_recipe({**tree, "rounds": 4}, "tiny") == check_recipe(tree, "tiny")


def test_the_tree_that_is_expanded_stays_as_it_was() -> None:
    tree = written()
    before = copy.deepcopy(tree)
    found, wrong = expand_rounds(tree)
    assert tree == before and wrong == [] and "rounds" not in found
    assert expand_rounds(found) == (found, [])


def test_a_resolved_recipe_with_rounds_loads_back(tmp_path: Path) -> None:
    found = check_recipe(written(), "here")
    assert "rounds" not in yaml.safe_load(dump_recipe(found)) and "next_init" not in dump_recipe(found)
    assert load_recipe(file(tmp_path, dump_recipe(found))) == found


def test_overrides_and_defaults_reach_every_round(tmp_path: Path) -> None:
    path = file(tmp_path, written(defaults={"clip": 2.0, "optimizer": {"lr": 0.5}}))
    overrides = ["stages.retrain.optimizer.lr=0.25", "stages.cluster.cluster.kmeans.clusters=7", "rounds=2"]
    found = load_recipe(path, overrides)
    assert found.run[-1] == "retrain-2"
    for number in (1, 2):
        assert found.stages[f"retrain-{number}"].optimizer.lr == 0.25 and found.stages[f"retrain-{number}"].clip == 2.0
        kmeans = found.stages[f"cluster-{number}"].cluster.kmeans  # type: ignore[union-attr]
        assert kmeans is not None and kmeans.clusters == 7
    assert found.stages["classify"].optimizer.lr == 0.5
    with pytest.raises(RecipeError, match="there is no stage cluster-1; did you mean cluster"):
        load_recipe(path, ["stages.cluster-1.epochs=3"])


@pytest.mark.parametrize("rounds", [0, -1, 1.5, "two", True, [2]])
def test_rounds_are_a_whole_number(rounds: Any) -> None:
    assert refused(written(rounds=rounds))[0] == f"rounds: found {rounds!r}; expected a whole number from 1 to 100"


@pytest.mark.parametrize("name", ["clusterr", 3, None, ["retrain"], {"retrain": 1}])
def test_what_is_repeated_must_be_stages(name: Any) -> None:
    tree = written()
    tree["run"] = ["classify", ["cluster", name]]
    assert refused(tree)[0] == f"run: repeats {name!r}; expected the name of a stage"


WRONG: dict[str, dict[str, Any]] = {
    "stages.cluster.cluster.kmeans.clusters: found 0; expected greater than or equal to 1": {
        "stages__cluster__cluster__kmeans__clusters": 0},
    "stages.retrain.lost: unknown key": {"stages__retrain__lost": 1},
    "stages.retrain.data.K: missing; a labelled stage needs both P and K": {"stages__retrain__data__K": None},
    "stages.cluster.epochs: belongs to stages that train; leave it out": {"stages__cluster__epochs": 2},
    "stages.retrain.init: missing": {"stages__retrain__init": None},
    "stages.retrain.data.labels: is clusters, which is not a stage with cluster": {
        "stages__retrain__data__labels": "clusters"},
    "stages.retrain.data.labels: is classify, which is not a stage with cluster": {
        "stages__retrain__data__labels": "classify"},
    "stages.retrain.reinit: classify has no decoder, so it starts from new weights; leave it out": {
        "stages__retrain__reinit": ["decoder"], "stages__retrain__parts__decoder": "frozen"},
    "stages.retrain.parts.decoder: is frozen, but its init classify has none; set it to train or absent": {
        "stages__retrain__parts__decoder": "frozen"},
    "stages.cluster.init: is the stage retrain, which run does not list before it": {
        "stages__cluster__init": "retrain"},
    "stages.retrain.init: is the stage cluster, which computes labels and not a model": {
        "stages__retrain__init": "cluster"},
    "defaults.clip: found -1; expected greater than 0": {"defaults": {"clip": -1}},
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_mistake_in_a_round_is_reported_once_by_the_path_that_was_written(message: str) -> None:
    found = refused(written(**WRONG[message]))
    own = [line for line in found if line.startswith(message.partition(": ")[0] + ": ")]
    assert len(own) == 1 and own[0].startswith(message), found
    assert not any(f"{name}-{number}" in line for line in found for name in ("cluster", "retrain") for number in "123")
    assert len(set(found)) == len(found)


def test_next_init_belongs_to_rounds() -> None:
    found = refused(written(stages__classify__next_init="retrain"))
    assert found[0].startswith("stages.classify.next_init: unknown key")


# Epochs and schedule: a stage has one of them


@pytest.mark.parametrize(
    ("defaults", "stage", "epochs", "schedule"),
    [
        ({"epochs": 4}, {"schedule": {"constant": 2}}, None, 2),
        ({"schedule": {"constant": 2}}, {"epochs": 4}, 4, None),
        ({"epochs": 4}, {}, 4, None),
        ({"schedule": {"constant": 2}}, {}, None, 2),
        ({"schedule": {"constant": 2}}, {"schedule": {"constant": 5}}, None, 5),
        ({"epochs": 4}, {"schedule": None}, 4, None),  # what is taken away replaces nothing
        ({"schedule": {"constant": 2}}, {"epochs": None}, None, 2),
    ],
)
def test_a_stages_own_length_replaces_the_default_of_the_other_kind(
    defaults: dict[str, Any], stage: dict[str, Any], epochs: float | None, schedule: float | None
) -> None:
    tree = tiny_run.tree(defaults=defaults, stages__embedding__epochs=None)
    tree["stages"]["embedding"] |= stage
    found = check_recipe(tree, "tiny").stages["embedding"]
    assert (found.epochs, found.schedule and found.schedule.constant) == (epochs, schedule)


@pytest.mark.parametrize("length", [{"epochs": 4}, {"schedule": {"constant": 3}}])
def test_stages_that_train_nothing_take_no_length_from_defaults(length: dict[str, Any]) -> None:
    found = check_recipe(written(defaults=length), "here").stages
    assert found["cluster-1"].epochs is None and found["cluster-1"].schedule is None


# Settings


def test_settings_go_over_the_recipe_and_under_the_command_line(tmp_path: Path) -> None:
    path = file(tmp_path, tiny_run.tree(seed=1, model__hidden=16))
    first = file(tmp_path, {"seed": 2, "model": {"hidden": 32}, "scoring": {"batch": 7}}, "first.yaml")
    second = file(tmp_path, {"seed": 3, "scoring": {"tta": "none"}}, "second.yaml")
    found = load_recipe(path, ["model.hidden=64"], [first, second])
    assert (found.seed, found.model.hidden) == (3, 64)  # the later settings win
    assert (found.scoring.batch, found.scoring.tta) == (7, "none")
    assert load_recipe(path, [], [second, first]).seed == 2
    assert load_recipe(path).seed == 1


def test_extends_then_settings_then_own_lines_then_the_command_line(tmp_path: Path) -> None:
    file(tmp_path, tiny_run.tree(seed=1, model__hidden=1, model__embedding=1, scoring={"batch": 1}), "base.yaml")
    file(tmp_path, {"model": {"hidden": 2, "embedding": 2}, "scoring": {"batch": 2}}, "set.yaml")
    own = {"extends": "base.yaml", "settings": "set.yaml", "name": "own", "model": {"embedding": 3},
           "scoring": {"batch": 3}}
    found = load_recipe(file(tmp_path, own), ["scoring.batch=4"])
    assert (found.seed, found.model.hidden, found.model.embedding, found.scoring.batch) == (1, 2, 3, 4)
    # Of a recipe that is extended its settings are below all of this one's.
    again = load_recipe(file(tmp_path, {"extends": "own.yaml", "model": {"hidden": 5}}, "again.yaml"))
    assert (again.name, again.model.hidden, again.model.embedding) == ("own", 5, 3)


def test_defaults_of_settings_replace_the_recipes(tmp_path: Path) -> None:
    path = file(tmp_path, tiny_run.tree(defaults={"clip": 1.0, "optimizer": {"lr": 0.5}}))
    small = file(tmp_path, {"defaults": {"optimizer": {"lr": 0.25}}}, "small.yaml")
    stage = load_recipe(path, [], [small]).stages["embedding"]
    assert (stage.clip, stage.optimizer.lr) == (1.0, 0.25)


def test_a_recipe_takes_the_lines_of_the_stages_that_it_has(tmp_path: Path) -> None:
    small = file(
        tmp_path, {"stages": {"embedding": {"clip": 3.0}, "autoencoder": {"clip": 4.0}}}, "small.yaml"
    )
    assert load_recipe("baseline", [], [small]).stages.keys() == {"embedding"}
    assert load_recipe("baseline", [], [small]).stages["embedding"].clip == 3.0
    assert load_recipe("embae-new", [], [small]).stages["autoencoder"].clip == 4.0
    assert set(load_recipe("pul", ["rounds=1"], [small]).stages) == {"classification", "cluster-1", "retrain-1"}
    assert "target-nuisance" not in load_recipe("embae-fix", [], ["quick"]).stages


def test_a_stage_that_the_recipe_took_away_stays_away(tmp_path: Path) -> None:
    path = file(tmp_path, "extends: embae-new\nrun: [embedding]\nevaluate: null\n"
                          "stages: {autoencoder: null, target-nuisance: null, target-embedding: null}\n")
    small = file(tmp_path, {"stages": {"autoencoder": {"epochs": 3}}}, "small.yaml")
    assert load_recipe(path, [], [small]).stages.keys() == {"embedding"}
    tree = tiny_run.tree()
    tree["stages"]["spare"] = None
    small = file(tmp_path, {"stages": {"spare": {"epochs": 3}}}, "small.yaml")
    assert "spare" not in load_recipe(file(tmp_path, tree), [], [small]).stages


def test_a_stage_of_no_recipe_is_refused_with_the_nearest(tmp_path: Path) -> None:
    small = file(tmp_path, {"stages": {"autoencodr": {"epochs": 3}}}, "small.yaml")
    with pytest.raises(RecipeError, match=r"small\.yaml: stages: autoencodr is not a stage of this .*; did you mean a"):
        load_recipe("baseline", [], [small])
    own = file(
        tmp_path, tiny_run.tree(run=["mine"], evaluate={}, stages={"mine": tiny_run.tree()["stages"]["embedding"]})
    )
    small = file(tmp_path, {"stages": {"mine": {"clip": 3.0}}}, "small.yaml")
    assert load_recipe(own, [], [small]).stages["mine"].clip == 3.0  # its own stages are known


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("qick", "qick: no such file, and no settings of that name is shipped; did you mean quick"),
        ("nothing.yaml", "nothing.yaml: cannot be read"),
    ],
)
def test_settings_that_are_not_there(
    settings: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        load_recipe("baseline", [], [settings])
    with pytest.raises(RecipeError, match=message):
        load_recipe(file(tmp_path, {"extends": "baseline", "settings": settings}))


@pytest.mark.parametrize("content", ["stages: 3", "stages: [embedding]", "[1]", "a: 1\na: 2", ""])
def test_what_is_no_settings(tmp_path: Path, content: str) -> None:
    small = file(tmp_path, content, "small.yaml")
    with pytest.raises(RecipeError, match=r"small\.yaml: "):
        load_recipe("baseline", [], [small])
    with pytest.raises(RecipeError, match="settings: found 3; expected the name of shipped settings"):
        load_recipe(file(tmp_path, "extends: baseline\nsettings: 3\n"))


def test_mistakes_that_settings_bring_are_reported_by_their_path(tmp_path: Path) -> None:
    small = file(tmp_path, {"sed": 3, "stages": {"embedding": {"clip": -1}}}, "small.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe("baseline", ["seed=-1"], [small])
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "sed: unknown key; did you mean seed?" in lines
    assert "stages.embedding.clip: found -1; expected greater than 0" in lines
    assert "seed: found -1; expected greater than or equal to 0" in lines


def test_a_recipe_without_stages_is_reported_whatever_the_settings(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="stages: found 3; expected"):
        load_recipe(file(tmp_path, {**tiny_run.tree(), "stages": 3}), [], ["quick"])


# What ships


@pytest.mark.parametrize("settings", [[], *([name] for name in shipped_names(SETTINGS)), list(shipped_names(SETTINGS))],
                         ids=lambda settings: "+".join(settings) or "none")  # fmt: skip
@pytest.mark.parametrize("name", shipped_names())
def test_every_recipe_loads_with_every_settings(name: str, settings: list[str], tmp_path: Path) -> None:
    found = load_recipe(name, [], settings)
    assert found.name == name
    assert load_recipe(file(tmp_path, dump_recipe(found))) == found
    bare = load_recipe(name)
    for stage, keys in found.stages.items():
        if stage in bare.stages:  # what settings may not change: that is what makes it this recipe
            assert (keys.parts, keys.reinit, keys.kind) == (
                bare.stages[stage].parts, bare.stages[stage].reinit, bare.stages[stage].kind)  # fmt: skip


# The paper's tables, literally. Of F E N D, classifier and discriminator: T trains, f is frozen, - is absent.
PAPER: dict[str, tuple[str, dict[str, tuple[str, str, str]]]] = {
    "baseline": ("-", {"embedding": ("hub", "sources", "TT----")}),
    "mixed-batches": ("-", {"embedding": ("hub", "sources", "TT----")}),
    "embae": ("shared", {
        "embedding": ("hub", "sources", "TT----"), "autoencoder": ("embedding", "sources", "ffTT--"),
        "target-embedding": ("autoencoder", "target", "fTTT--")}),
    "embae-fix": ("shared", {
        "embedding": ("hub", "sources", "TT----"), "autoencoder": ("embedding", "sources", "ffTT--"),
        "target-embedding": ("autoencoder", "target", "fTfT--")}),
    **{f"embae-{name}": (per, {
        "embedding": ("hub", "sources", "TT----"), "autoencoder": ("embedding", "sources", "ffTT--"),
        "target-nuisance": ("autoencoder", "target", "ffTf--"),
        "target-embedding": ("target-nuisance", "target", "fTfT--")})
       for name, per in (("new", "shared"), ("dataset", "dataset"), ("cam", "camera"), ("narrow", "camera"))},
    "aae": ("shared", {
        "embedding": ("hub", "sources", "TT----"), "adversarial": ("embedding", "sources", "fTTT-T"),
        "target-adversarial": ("adversarial", "target", "fTTT-T")}),
    "pul": ("-", {
        "classification": ("hub", "sources", "T---T-"), "cluster-1": ("classification", "target", "f-----"),
        "retrain-1": ("classification", "target", "T---T-"), "cluster-2": ("retrain-1", "target", "f-----"),
        "retrain-2": ("classification", "target", "T---T-")}),
    **{name: ("-", {"embedding": ("hub", "sources", "TT----"), "calibrate": ("embedding", "target", "ff----")})
       for name in ("bn-target", "bn-camera", "features-camera", "centred-camera")},
    "target-labels": ("-", {
        "embedding": ("hub", "sources", "TT----"), "supervised": ("embedding", "target", "TT----")}),
    "bn-camera-embae-fix": ("shared", {
        "embedding": ("hub", "sources", "TT----"), "autoencoder": ("embedding", "sources", "ffTT--"),
        "calibrate": ("autoencoder", "target", "ffff--"), "target-embedding": ("calibrate", "target", "fTfT--")}),
    "bn-camera-embae-cam": ("camera", {
        "embedding": ("hub", "sources", "TT----"), "autoencoder": ("embedding", "sources", "ffTT--"),
        "calibrate": ("autoencoder", "target", "ffff--"), "target-nuisance": ("calibrate", "target", "ffTf--"),
        "target-embedding": ("target-nuisance", "target", "fTfT--")}),
    "bn-camera-features": ("-", {
        "embedding": ("hub", "sources", "TT----"), "calibrate": ("embedding", "target", "ff----"),
        "features": ("calibrate", "target", "f-----")}),
    "bn-camera-autoencoder": ("-", {
        "embedding": ("hub", "sources", "TT----"), "calibrate": ("embedding", "target", "ff----"),
        "target-embedding": ("calibrate", "target", "fT-T--")}),
}  # fmt: skip
BEYOND = {"strong-baseline", "calibrate-only", "adapt-best", "adapt-source-free", "adapt-embae"}
FRESH = {"target-nuisance": ["nuisance"], "retrain-1": ["classifier"], "retrain-2": ["classifier"]}


def _letters(stage: Stage) -> str:
    return "".join({"train": "T", "frozen": "f", "absent": "-"}[stage.use(part)] for part in PARTS)


def test_the_table_has_every_recipe() -> None:
    assert {*PAPER, *BEYOND, "quickstart", "pretrain-merged"} == set(shipped_names())


@pytest.mark.parametrize("name", PAPER)
def test_shipped_variants_train_and_freeze_what_the_paper_says(name: str) -> None:
    found: Recipe = load_recipe(name, ["rounds=2"] if name == "pul" else [])
    per, stages = PAPER[name]
    assert found.run == list(stages)
    assert {stage: (keys.init, keys.data.from_, _letters(keys)) for stage, keys in found.stages.items()} == stages
    fresh = FRESH | ({"target-embedding": ["decoder"]} if name == "embae-narrow" else {})
    assert {stage: keys.reinit for stage, keys in found.stages.items() if keys.reinit} == {
        stage: parts for stage, parts in fresh.items() if stage in stages}  # fmt: skip
    if per != "-":
        assert found.model.nuisance.per == per
    assert found.data.image == (256, 128) and found.model.backbone == "mobilenetv1_100"
    assert found.scoring.tta == "ten-crop"
    for stage in found.stages.values():  # nothing but the sources' identities is read as labels
        labelled = stage.data.labelled and not stage.data.labels and stage.data.from_ == "target"
        assert labelled == (name == "target-labels" and stage is found.stages["supervised"])


def test_quickstart_is_embae_cam_with_quick_settings() -> None:
    found, wanted = load_recipe("quickstart"), load_recipe("embae-cam", [], ["quick"])
    assert found == wanted.model_copy(update={"name": "quickstart"})


def test_what_recipes_share_begins_alike() -> None:
    """Else a comparison would train it again for each."""
    baseline = load_recipe("baseline").stages["embedding"]
    for name in PAPER:
        if name not in ("pul", "mixed-batches"):
            assert load_recipe(name).stages["embedding"] == baseline, name
    for name in ("embae", "embae-fix", "embae-cam", "embae-dataset", "bn-camera-embae-cam"):
        assert load_recipe(name).stages["autoencoder"] == load_recipe("embae-new").stages["autoencoder"], name


@pytest.mark.parametrize("name", sorted(shipped_names()))
def test_the_first_row_of_the_table_is_what_the_others_start_from(name: str) -> None:
    found = load_recipe(name)
    first, *others = found.evaluate
    assert found.start(first) is None
    for row in others:
        assert found.start(row) in found.evaluate, row
