"""Recipes as text: what is read, what is refused, and that whatever is refused is refused with a sentence."""

from __future__ import annotations

import copy
import random
import string
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import tiny_run

from embae.trainer.errors import RecipeError
from embae.trainer.recipe.load import dump_recipe, load_recipe
from embae.trainer.recipe.shipped import read_text, shipped_names
from embae.trainer.recipe.trees import merge_trees


def refused(*arguments: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(*arguments)
    return str(caught.value)


def text(folder: Path, content: str | bytes, name: str = "own.yaml") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_names_what_ships() -> None:
    assert {"baseline", "embae-cam", "quickstart"} <= set(shipped_names())


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipes_load_and_come_back_from_their_dump(name: str, tmp_path: Path) -> None:
    found = load_recipe(name)
    assert found.name == name
    assert load_recipe(text(tmp_path, dump_recipe(found))) == found
    assert read_text(name)[0].startswith("# ")  # the line that `embae recipes list` shows


def test_a_dump_keeps_text_that_looks_like_something_else(tmp_path: Path) -> None:
    tree = tiny_run.tree(
        evaluate={"1e5": "embedding", "2020-01-01": "embedding", "yes": "embedding", "null": "embedding"}
    )
    found = load_recipe(str(tiny_run.write(tmp_path, tree)))
    assert (
        load_recipe(text(tmp_path, dump_recipe(found))).evaluate
        == found.evaluate
        == dict.fromkeys(["1e5", "2020-01-01", "yes", "null"], "embedding")
    )


def test_extends_a_shipped_recipe(tmp_path: Path) -> None:
    found = load_recipe(text(tmp_path, "extends: embae-cam\nname: mine\nstages: {embedding: {clip: 2.0}}\n"))
    base = load_recipe("embae-cam")
    assert found.stages["embedding"].clip == 2.0
    assert found.model_copy(update={"name": base.name, "stages": base.stages}) == base
    assert found.stages["autoencoder"] == base.stages["autoencoder"]


def test_extends_the_file_beside_it_whatever_the_working_directory(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "deep").mkdir()
    tiny_run.write(tmp_path / "deep", tiny_run.tree(seed=5), "base.yaml")
    path = text(tmp_path / "deep", "extends: base.yaml\nname: mine\n")
    monkeypatch.chdir(tmp_path)
    assert (load_recipe("deep/own.yaml").seed, load_recipe(path).name) == (5, "mine")


def test_a_recipe_may_extend_the_shipped_one_of_its_name(tmp_path: Path) -> None:
    assert load_recipe(text(tmp_path, "extends: baseline\nseed: 3\n", "baseline.yaml")).seed == 3


@pytest.mark.parametrize("first, second", [("a.yaml", None), ("b.yaml", "a.yaml"), ("../x/b.yaml", "../x/a.yaml")])
def test_a_loop_of_extends_is_refused(tmp_path: Path, first: str, second: str | None) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    path = text(folder, f"extends: {first}\n", "a.yaml")
    if second:
        text(folder, f"extends: {second}\n", "b.yaml")
    assert "extends itself" in refused(path)


def test_extends_what_is_not_there(tmp_path: Path) -> None:
    said = refused(text(tmp_path, "extends: embae-kam\n"))
    assert "did you mean embae-cam?" in said and "own.yaml" in said
    assert "expected the name" in refused(text(tmp_path, "extends: [a, b]\n"))


def test_defaults_reach_every_stage_and_give_way(tmp_path: Path) -> None:
    tree = tiny_run.tree(defaults={"clip": 3.0, "optimizer": {"lr": 0.5, "name": "sgd"}, "epochs": 4})
    tree["stages"]["autoencoder"]["optimizer"] = {"lr": 0.25}
    tree["stages"]["embedding"] |= {"clip": None, "epochs": None, "schedule": {"constant": 2}}
    stages = load_recipe(str(tiny_run.write(tmp_path, tree))).stages
    assert stages["embedding"].clip is None  # null takes the default away
    assert stages["embedding"].epochs is None
    assert stages["autoencoder"].clip == 3.0
    assert (stages["autoencoder"].optimizer.lr, stages["autoencoder"].optimizer.name) == (0.25, "sgd")
    assert stages["target-nuisance"].optimizer.lr == 0.5


def test_mistakes_in_defaults_are_named_there_and_once(tmp_path: Path) -> None:
    said = refused(str(tiny_run.write(tmp_path, tiny_run.tree(defaults={"optimizer": {"lr": -1}, "precison": "bf16"}))))
    assert "defaults.optimizer.lr: found -1; expected greater than 0" in said
    assert "defaults.precison: unknown key; did you mean precision?" in said
    assert "2 mistakes" in said and len(said.splitlines()) == 3
    assert "defaults: found 3" in refused(str(tiny_run.write(tmp_path, tiny_run.tree(defaults=3))))


@pytest.mark.parametrize("written, value", [("1e-4", 1e-4), ("1E-4", 1e-4), ("2.e-4", 2e-4), ("0.5", 0.5), ("2", 2.0)])
def test_overrides_are_numbers_where_they_look_like_it(written: str, value: float) -> None:
    found = load_recipe("embae-cam", [f"stages.embedding.optimizer.lr={written}"]).stages["embedding"].optimizer.lr
    assert isinstance(found, float) and found == value


def test_overrides() -> None:
    found = load_recipe(
        "embae-cam",
        [
            "data.sources=[dukemtmc, viper]",
            "data.root=/data/a b",
            "stages.embedding.schedule=null",
            "stages.embedding.epochs=7",
            "scoring=null",
            "model.backbone=resnet50",
            "stages.embedding.deepspeed.zero.offload_optimizer={device: cpu}",
        ],
    )
    assert found.data.sources == ["dukemtmc", "viper"] and found.data.root == Path("/data/a b")
    assert found.stages["embedding"].schedule is None and found.stages["embedding"].epochs == 7
    assert found.scoring.tta == "flip"  # the default: null took away what the recipe said
    assert found.model.backbone == "resnet50"
    assert found.stages["embedding"].deepspeed.zero == {"offload_optimizer": {"device": "cpu"}}


def test_an_override_of_an_alias_stays_where_it_is(tmp_path: Path) -> None:
    path = tiny_run.write(tmp_path, tiny_run.tree())
    said = path.read_text().replace("optimizer:", "optimizer: &o", 1) + "x: 1\n"
    aliased = said.replace("x: 1\n", "").replace("    init: random\n", "    init: random\n    optimizer: *o\n")
    found = load_recipe(text(tmp_path, aliased), ["stages.embedding.optimizer.lr=0.125"])
    assert found.stages["embedding"].optimizer.lr == 0.125
    assert found.stages["autoencoder"].optimizer.lr == 1e-3


def test_wrong_overrides_are_reported_together() -> None:
    said = refused("embae-cam", ["stages.embeding.optimizer.lr=1", "seeds=3", "foo", "name.deep=1", "seed={", "=3"])
    assert "stages.embeding.optimizer.lr: there is no stage embeding; did you mean embedding?" in said
    assert "seeds: unknown key; did you mean seed?" in said
    assert "'foo': found no key=value" in said
    assert "name.deep: name is a value" in said
    assert "seed={: not a valid YAML file" in said
    assert "6 mistakes" in said


def test_all_mistakes_at_once_each_by_its_path(tmp_path: Path) -> None:
    tree = tiny_run.tree(
        sed=1, model__nuisance__per="cameras", data__image=[48], data__loader="dalli", data__target="a b"
    )
    stages = tree["stages"]
    stages["embedding"]["data"]["K"] = "two"
    stages["embedding"]["loss"]["triplet"] = {"margin": -1}
    stages["embedding"]["data"]["augment"] = {"flip": 1, "hue": 200}
    stages["autoencoder"]["parts"]["decodr"] = "train"
    stages["autoencoder"]["reinit"] = ["heads"]
    del stages["target-nuisance"]["init"]
    stages["target-embedding"]["optimiser"] = {}
    lines = refused(str(tiny_run.write(tmp_path, tree))).splitlines()
    parts = "'backbone', 'embedding', 'nuisance', 'decoder', 'classifier' or 'discriminator'"
    wanted = [
        "sed: unknown key; did you mean seed?",
        "model.nuisance.per: found 'cameras'; expected 'shared', 'dataset' or 'camera'",
        "data.image.1: missing",
        "data.loader: found 'dalli'; expected 'dali' or 'webdataset'",
        "data.target: found 'a b'; expected letters, digits, _ and -, a letter or digit first",
        "stages.embedding.data.K: found 'two'; expected a valid integer",
        "stages.embedding.loss.triplet.margin: found -1; expected 'soft', or greater than 0",
        "stages.embedding.data.augment.flip: found 1; expected a valid boolean",
        "stages.embedding.data.augment.hue: found 200; expected less than or equal to 180",
        f"stages.autoencoder.parts.decodr: found 'decodr'; expected {parts}",
        f"stages.autoencoder.reinit.0: found 'heads'; expected {parts}",
        "stages.target-nuisance.init: missing",
        "stages.target-embedding.optimiser: unknown key; did you mean optimizer?",
    ]
    assert sorted(line.strip() for line in lines[1:]) == sorted(wanted)
    assert f"{len(wanted)} mistakes" in lines[0]


def test_an_unlike_key_is_reported_what_may_stand_there(tmp_path: Path) -> None:
    said = refused(str(tiny_run.write(tmp_path, tiny_run.tree(model__zzz=1))))
    known = "backbone, pooling, last_stride, head, unit, embedding, hidden, nuisance"
    assert f"model.zzz: unknown key; expected one of {known}" in said


@pytest.mark.parametrize(
    "content",
    [
        "name: a\nname: b\n",
        "data: {root: a, root: b}\n",
        'a: 1\n"a": 2\n',
        "stages:\n  x: {parts: {decoder: train, decoder: frozen}}\n",
    ],
)
def test_duplicate_keys_are_refused(tmp_path: Path, content: str) -> None:
    assert "appears twice" in refused(text(tmp_path, content))


def test_merge_keys_are_no_duplicates(tmp_path: Path) -> None:
    tree = yaml.safe_dump(tiny_run.tree(defaults=None), sort_keys=False)
    merged = tree.replace("  autoencoder:\n", "  autoencoder:\n    <<: {optimizer: {lr: 0.5}, epochs: 9, clip: 1}\n")
    stage = load_recipe(text(tmp_path, merged)).stages["autoencoder"]
    assert (stage.optimizer.lr, stage.epochs, stage.clip) == (0.5, 1, 1)


@pytest.mark.parametrize(
    "content",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "name: !!python/object:pathlib.Path {}",
        "name: !!python/name:os.system ''",
        "seed: !!python/object/new:int [3]",
        "name: !unknown x",
        "x: !!python/tuple [1]",
    ],
)
def test_tags_that_build_objects_are_refused(tmp_path: Path, content: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert "not a valid YAML file" in refused(text(tmp_path, content))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# nothing\n",
        "[]",
        "- a\n- b\n",
        "3",
        "text",
        "null",
        "a: [",
        "{" * 50,
        "a: b: c",
        "\t- x",
        "*nowhere",
        "%YAML 9",
        "a: 1\n---\nb: 2\n",
        "? [1, 2]\n: 3\n",
        "? {a: 1}\n: 3\n",
        "1: 2\n",
        "true: 1\n",
        "a: !!timestamp x\n",
        "a: !!bool x\n",
        'a: !!int ""\n',
        "a: !!binary x\n",
        "a: !!binary /w==\n",
        "a: !!set {b}\n",
        "a: !!omap [b: 1]\n",
        "a: " + "9" * 5000,
        'name: "\\ud800"\n',
        '"\\ud800": 1\n',
        b"\x00\x01\x02",
        b"\xff\xfe\x00",
        b"\x89PNG\r\n\x1a\n\x00",
        "\ufeffname: x\n",
    ],
    ids=repr,
)
def test_what_is_no_recipe(tmp_path: Path, content: str | bytes) -> None:
    said = refused(text(tmp_path, content))
    assert "own.yaml" in said.splitlines()[0]
    said.encode()


def test_folders_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read as a recipe" in refused(str(tmp_path / "folder.yaml"))
    assert "no such file" in refused(str(tmp_path / "nothing.yaml")).lower()
    assert "no recipe of that name is shipped" in refused(str(tmp_path))
    assert "did you mean quickstart? (shipped: " in refused("quikstart")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        BOMB + "name: *j\n",
        BOMB.replace("[", "{k: ").replace("]", "}").replace(", ", ", k") + "name: *j\n",
        MERGED + "name: x\n",
        "name: &a [*a]\n",
        "name: &a {b: *a}\n",
        "name: " + "[" * 20_000 + "]" * 20_000,
        "name: " + "{a: " * 5_000 + "}" * 5_000,
        "name: x\n" + "deep:\n" + "".join(" " * n + f"k{n}:\n" for n in range(1, 2000)),
        "name: " + "x" * 2_000_000,
    ],
    ids=[
        "lists",
        "mappings",
        "merge keys",
        "loop",
        "loop of mappings",
        "nested lists",
        "nested mappings",
        "steps",
        "long text",
    ],
)
def test_bombs_neither_hang_nor_crash(tmp_path: Path, content: str) -> None:
    start = time.monotonic()
    said = refused(text(tmp_path, content))
    assert time.monotonic() - start < 20
    assert len(said) < 2000


def test_merge_removes_what_is_null_at_any_depth() -> None:
    assert merge_trees(
        {"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": None, "e": {"f": None, "g": 3}}, "d": None, "x": None}
    ) == {"a": {"c": 2, "e": {"g": 3}}}


def _mutate(rng: random.Random, tree: dict[str, Any]) -> None:
    """Changes one place of a tree at random."""
    at: Any = tree
    while True:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.8:
            at = at[key]
            continue
        break
    strange = [
        None,
        True,
        -1,
        0,
        1,
        10**30,
        0.5,
        float("inf"),
        float("nan"),
        "",
        "embedding",
        "x" * 300,
        [],
        {},
        [[1]],
        {"a": 1},
        [None],
        {"": 0},
        "1e-4",
        "ä\u2028\x85",
        ["embedding"] * 3,
        {"from": "sources"},
        tree.get("data"),
    ]
    choice = rng.random()
    if choice < 0.6 or isinstance(at, list):
        at[key] = copy.deepcopy(rng.choice(strange))
    elif choice < 0.8:
        del at[key]
    else:
        at["".join(rng.choices(string.printable, k=3))] = at.pop(key)


def test_mutated_recipes_load_or_are_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    outcomes = {True: 0, False: 0}
    for number in range(300):
        tree = tiny_run.tree()
        for _ in range(rng.choice([1, 1, 2, 5])):
            _mutate(rng, tree)
        content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()
        if number % 3 == 0:  # damage the text too
            damaged = bytearray(content)
            for _ in range(3):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            content = bytes(damaged)
        path = text(tmp_path, content)
        try:
            found = load_recipe(path)
        except RecipeError as error:
            assert str(error).startswith(path) and len(str(error)) < 20_000
            outcomes[False] += 1
        else:
            assert load_recipe(text(tmp_path, dump_recipe(found))) == found
            outcomes[True] += 1
    assert min(outcomes.values()) > 10, outcomes
