"""Where a stage's weights come from, and what is said when they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy_models import KEYS, RECONSTRUCTION, TRIPLET, Seen, heads, model, parts_in, stage
from safetensors.torch import save_file

from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer.errors import WeightsError
from embae.trainer.model import saved as export
from embae.trainer.model.backbone import build_backbone
from embae.trainer.model.embae import EmbAE
from embae.trainer.runs.stage_folder import StageCost, finish_stage
from embae.trainer.training.initial_model import StageStart, initial_model

CAMERAS = [("toy", 0), ("toy", 1), ("toy", 2)]
ALL = parts_in("frozen", "train", "train", "train")


def _initial(
    run: Path,
    init: str,
    parts: dict[str, str] = ALL,
    seed: int = 0,
    name: str = "now",
    cameras: Any = CAMERAS,
    reinit: tuple[str, ...] = (),
) -> EmbAE:
    loss = TRIPLET if parts["decoder"] == "absent" else RECONSTRUCTION
    keys = stage(parts, loss, init=init, reinit=list(reinit))
    return initial_model(KEYS, keys, StageStart(name, seed, run, Seen(cameras)))


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose stages ``before`` (all parts) and ``first`` (no nuisance, no decoder) are done."""
    for name, parts, labels in (("before", ALL, heads(4)), ("first", parts_in("train", "train"), [])):
        made = model(parts, labels, seed=5)
        with finish_stage(tmp_path / name, StageCost(1, 1, 1.0)) as partial:
            export.write(partial, made, made.state_dict(), keys=KEYS, spec=ImageSpec(32, 16))
    return tmp_path


def test_random_is_drawn_from_seed_and_stage_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = _initial(tmp_path, "random")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert _same(first, _initial(tmp_path, "random"))
    assert not _same(first, _initial(tmp_path, "random", seed=1))
    assert not _same(first, _initial(tmp_path, "random", name="other"))


@pytest.mark.parametrize("how", ["a stage of this run", "an export's folder", "a stage's folder"])
def test_every_part_comes_from_an_export(run: Path, how: str) -> None:
    init = {"a stage of this run": "before", "an export's folder": str(run / "before" / "export")}.get(
        how, str(run / "before")
    )
    made = _initial(run if how == "a stage of this run" else run / "elsewhere", init)
    assert _same(made, model(ALL, heads(4), seed=5))
    assert made.nuisance.labels == heads(4)  # also of cameras that this stage does not see


def test_reinit_starts_a_part_afresh(run: Path) -> None:
    made, before = _initial(run, "before", reinit=("nuisance", "decoder")), model(ALL, heads(4), seed=5)
    fresh = _initial(run, "random")
    assert made.nuisance.labels == CAMERAS
    for part in ("backbone", "embedding"):
        assert _same(getattr(made, part), getattr(before, part))
    for part in ("nuisance", "decoder"):
        assert _same(getattr(made, part), getattr(fresh, part))


def test_parts_that_the_export_lacks_start_afresh(run: Path) -> None:
    made, before, fresh = _initial(run, "first"), model(parts_in("train", "train"), seed=5), _initial(run, "random")
    assert _same(made.backbone, before.backbone) and _same(made.embedding, before.embedding)
    assert _same(made.nuisance, fresh.nuisance) and _same(made.decoder, fresh.decoder)


def test_a_stage_without_nuisance_takes_what_it_needs(run: Path) -> None:
    made = _initial(run, "before", parts_in("train", "train"))
    assert list(made.parts()) == ["backbone", "embedding"]
    assert _same(made.embedding, model(ALL, heads(4), seed=5).embedding)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_holds_the_backbone(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(8)
    weights = build_backbone(KEYS, (32, 32))
    path = tmp_path / f"backbone{suffix}"
    state = {key: value.contiguous() for key, value in weights.state_dict().items()}
    save_file(state, str(path)) if suffix == ".safetensors" else torch.save(state, path)
    made = _initial(tmp_path, str(path))
    assert _same(made.backbone, weights)
    assert _same(made.embedding, _initial(tmp_path, "random").embedding)


def test_a_missing_head_is_named_with_the_remedy(run: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"stages\.now\.init: before has no nuisance head for .*'toy', 9.*reinit: \[nuisance\]"
    ):
        _initial(run, "before", cameras=[*CAMERAS, ("toy", 9)])


def test_reinit_of_what_is_not_there_is_named(run: Path) -> None:
    with pytest.raises(WeightsError, match=r"stages\.now\.reinit: first has no decoder"):
        _initial(run, "first", reinit=("decoder",))


def test_weights_of_another_size_are_named(run: Path) -> None:
    wider = KEYS.model_copy(update={"embedding": 9})
    with pytest.raises(
        WeightsError, match=r"stages\.now\.init: before, part embedding: 3\.weight is \(8, 16\), the model's \(9, 16\)"
    ):
        initial_model(wider, stage(ALL, RECONSTRUCTION, init="before"), StageStart("now", 0, run, Seen(CAMERAS)))


class Payload:
    """Runs code where it is unpickled by those who trust it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"stages\.now\.init: .*evil\.pth: cannot be read as weights alone"):
        _initial(tmp_path, str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("empty", "cannot be read as weights"),
        ("other", "holds more than named tensors"),
        ("list", "holds more than named tensors"),
        ("folder", "a folder without an export"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "weights.pth"
    if content == "empty":
        path.touch()
    elif content == "folder":
        path.mkdir()
    elif content:
        torch.save({"model": {"conv.weight": torch.zeros(1)}} if content == "other" else [torch.zeros(1)], path)
    with pytest.raises(WeightsError, match=f"stages.now.init: .*weights.*{message}"):
        _initial(tmp_path, str(path))


def test_without_a_hub_the_alternative_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embae.trainer.training import initial_model as initial

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(initial, "build_backbone", offline)
    with pytest.raises(
        WeightsError, match=r"stages\.now\.init: the hub's weights of \w+ could not be fetched.*safetensors.*random"
    ):
        _initial(tmp_path, "hub")
