"""Embeddings against a plain loop over Pillow's images, and their scores; see test_cli.py for several ranks."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import tiny_run
from helpers.ranks import on_ranks
from PIL import Image

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import FileImage, Record, Split
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.loading.view_reader import ViewReader
from embae.datasets.sampling.view import View
from embae.datasets.sharding.options import ShardOptions
from embae.datasets.sharding.write_shards import write_shards
from embae.trainer.evaluation.evaluate import evaluate, labels
from embae.trainer.inference import embeddings
from embae.trainer.inference.embeddings import embedded, read_size, spread_over, views
from embae.trainer.inference.options import Inference, Reading
from embae.trainer.model.embae import EmbAE
from embae.trainer.recipe.model import Model
from embae.trainer.recipe.scoring import TTA
from embae.trainer.retrieval.expansion import expanded_queries
from embae.trainer.retrieval.ranking import rank_embeddings
from embae.trainer.retrieval.ranking_options import PLAIN, RankingOptions
from embae.trainer.retrieval.rerank import rank_again
from embae.trainer.runs.run_datasets import can_score
from embae.trainer.runtime.distributed import World

ALONE = World(0, 0, 1, torch.device("cpu"))
SPEC = ImageSpec(36, 18)  # at 9/8 of it the tiny datasets are stored, 40 × 20, so that nothing is resized for ten-crop
READING = Reading("webdataset", 1, batch=7)


def alone(spec: ImageSpec, cache: Path, reading: Reading = READING, tta: TTA = "none") -> Inference:
    """Inference on one rank."""
    return Inference(spec, ALONE, cache, reading, tta)


def model(unit: bool = False) -> EmbAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        keys = Model(backbone="test_efficientnet", embedding=6, hidden=8, unit=unit)
        return EmbAE(
            keys, {"backbone": "frozen", "embedding": "frozen", "nuisance": "absent", "decoder": "absent"}
        ).eval()


def park() -> Index:
    return Index.open(tiny_run.shards() / "park")


def plain_loop(index: Index, spec: ImageSpec, tta: TTA) -> np.ndarray:
    """Embeddings of the gallery, an image at a time: decoded by Pillow, cropped and mirrored as arrays."""
    view, made, rows = View([index], "gallery"), model(), []
    for data in ViewReader(view).read(np.arange(len(view))):
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.float32)
        crops = [pixels]
        if tta == "ten-crop":
            (high, wide), (h, w) = pixels.shape[:2], spec.size
            middle = pixels[(high - h) // 2 :, (wide - w) // 2 :][:h, :w]
            crops = [middle, pixels[:h, :w], pixels[:h, -w:], pixels[-h:, :w], pixels[-h:, -w:]]
        if tta != "none":
            crops += [crop[:, ::-1] for crop in crops]
        normal = [(crop / 255 - np.array(spec.mean)) / np.array(spec.std) for crop in crops]
        with torch.no_grad():
            found = [made(torch.from_numpy(crop.transpose(2, 0, 1).copy()).float()[None]) for crop in normal]
        rows.append(torch.cat(found).mean(0).numpy())
    return np.stack(rows)


def embed(split: Split, spec: ImageSpec, tta: TTA, folder: Path, reading: Reading = READING) -> np.ndarray:
    """A copy of what is in the file, which is gone with the context."""
    with embedded(model(), View([park()], split), alone(spec, folder / "here", reading, tta)) as found:
        assert isinstance(found, np.memmap) and not found.flags.writeable
        copy = np.array(found)
    assert not (folder / "here").exists()
    return copy


@pytest.mark.parametrize("tta, spec", [("none", ImageSpec(40, 20)), ("flip", ImageSpec(40, 20)), ("ten-crop", SPEC)])
def test_embeddings_are_those_of_a_plain_loop(tta: TTA, spec: ImageSpec, tmp_path: Path) -> None:
    wanted = plain_loop(park(), spec, tta)
    spread = np.linalg.norm(wanted - wanted.mean(0), axis=1).mean()
    found = embed("gallery", spec, tta, tmp_path)
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-4 * spread
    # DALI decodes JPEG with other roundings: a grey level here and there.
    dali = embed("gallery", spec, tta, tmp_path, Reading("dali", 1, batch=7))
    assert np.linalg.norm(dali - wanted, axis=1).max() < 0.05 * spread


def test_the_mean_of_all_ways_of_looking_has_length_1_where_the_model_says_so(tmp_path: Path) -> None:
    wanted = plain_loop(park(), SPEC, "ten-crop")
    inference = alone(SPEC, tmp_path, tta="ten-crop")
    with embedded(model(unit=True), View([park()], "gallery"), inference) as found:
        np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-4)


def test_the_ways_of_looking_differ(tmp_path: Path) -> None:
    found = [embed("query", SPEC, tta, tmp_path) for tta in ("none", "flip", "ten-crop")]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(found, found[1:] + found[:1], strict=True))


def test_ten_crop_is_centre_and_corners_each_with_its_mirror_image() -> None:
    spec = ImageSpec(16, 8)
    assert read_size(spec, "ten-crop") == (18, 9) and read_size(spec, "flip") == read_size(spec, "none") == (16, 8)
    images = torch.arange(2 * 3 * 18 * 9).view(2, 3, 18, 9).float()
    found = list(views(images, spec, "ten-crop"))
    wanted = [
        images[:, :, 1:17, 0:8],
        images[:, :, :16, :8],
        images[:, :, :16, 1:],
        images[:, :, 2:, :8],
        images[:, :, 2:, 1:],
    ]
    assert len(found) == 10
    for number, crop in enumerate(wanted):
        assert torch.equal(found[2 * number], crop) and torch.equal(found[2 * number + 1], torch.flip(crop, [3]))
    small = images[:, :, :16, :8]
    assert [
        torch.equal(a, b)
        for a, b in zip(views(small, spec, "flip"), [small, small.flip(3)], strict=True)
    ] == [True] * 2
    (only,) = views(small, spec, "none")
    assert torch.equal(only, small)


def make(folder: Path, rows: list[tuple[str, int | None, int, str]]) -> Index:
    """A dataset of (split, pid, camid, role)."""
    records = []
    for number, (split, pid, camid, role) in enumerate(rows):
        path = folder / f"{number:02d}.png"
        Image.new("RGB", (20, 40), (number * 20, 90, 255 - number * 20)).save(path)
        records.append(Record(f"r{number:02d}", split, pid, camid, FileImage(path), role))  # type: ignore[arg-type]
    return write_shards("made", records, folder / "out", source={"reader": "test"}, options=ShardOptions(workers=1))


def test_labels(tmp_path: Path) -> None:
    index = make(
        tmp_path,
        [
            ("query", 1, 1, "person"),
            ("gallery", 1, 2, "person"),
            ("gallery", 7, 2, "distractor"),
            ("gallery", 1, 2, "junk"),
            ("gallery", None, 3, "junk"),
            ("gallery", None, 3, "person"),
        ],
    )
    found = labels(View([index], "gallery"))
    seen = {
        (bool(known), bool(junk), int(camid)) + ((int(pid),) if known else ())
        for known, junk, camid, pid in zip(found.identified, found.junk, found.camid, found.pid, strict=True)
    }
    # A distractor is nobody's match, whatever its pid; junk is told apart from images that nobody labelled.
    assert seen == {(True, False, 2, 1), (False, False, 2), (False, True, 2), (False, True, 3), (False, False, 3)}
    assert len(found) == 5


@pytest.mark.parametrize(
    "refined", [PLAIN, RankingOptions(rerank=True), RankingOptions(expand=2), RankingOptions(True, 2)]
)
def test_scores_are_those_of_the_embeddings(refined: RankingOptions, tmp_path: Path) -> None:
    keep = tmp_path / "new" / "park.npz"
    found = evaluate(model(), park(), alone(ImageSpec(40, 20), tmp_path), refined=refined, keep=keep)
    known = [labels(View([park()], split)) for split in ("query", "gallery")]  # type: ignore[arg-type]
    with np.load(keep) as kept:
        query, gallery = kept["query"], kept["gallery"]
    assert np.array_equal(query, embed("query", ImageSpec(40, 20), "none", tmp_path))
    if refined.expand:
        query = expanded_queries(query, gallery, known[1].junk, refined.expand)
    how = rank_again if refined.rerank else rank_embeddings
    wanted = how(query, gallery, *known).scores().to_dict()
    assert {key: found[key] for key in wanted} == wanted and wanted["queries"] == park().count("query")
    for name, (low, high) in found["interval"].items():
        assert 0 <= low <= found[name] <= high <= 1
    # Nothing else is left, least of all half a file.
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")] == [Path("new/park.npz")]


WAYS = {
    "plain": PLAIN,
    "again": RankingOptions(rerank=True),
    "expanded": RankingOptions(expand=2),
    "both": RankingOptions(True, 2),
}


@on_ranks(1, 2, 3)
def ways(world: World, folder: Path) -> dict[str, Any]:
    """Scores, and the embeddings that they are of, plain and refined."""
    shards, found = shared_park(world, folder), {}
    reading = Reading("webdataset", 1, batch=1)
    inference = Inference(ImageSpec(40, 20), world, folder / "meanwhile", reading, "flip")
    for name, refined in WAYS.items():
        keep = folder / f"{name}.npz"
        found[name] = evaluate(model(), Index.open(shards / "park"), inference, refined=refined, keep=keep)
        dist.barrier()
        with np.load(keep) as kept:
            found[f"{name} embeddings"] = [torch.from_numpy(kept[split]) for split in ("query", "gallery")]
    found["left"] = (folder / "meanwhile").exists()
    return found


def shared_park(world: World, folder: Path) -> Path:
    """The dataset park, drawn once for all launches of a session."""
    root = folder.parent / "park-shards"
    if world.first and not root.exists():
        shutil.copytree(tiny_run.shards(), root)
    dist.barrier()
    return root


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_score_as_one_process_does(computed: Callable[..., Any], world_size: int) -> None:
    (single,) = computed(ways, 1)
    for found in computed(ways, world_size):
        for name in WAYS:
            assert found[name] == single[name] and found[name]["queries"] == 8
            pairs = zip(found[f"{name} embeddings"], single[f"{name} embeddings"], strict=True)
            assert all(torch.equal(*pair) for pair in pairs)
        assert not found["left"]
    assert all(single[one] != single[other] for one, other in combinations(WAYS, 2))


def test_a_killed_start_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks whose marker is there are kept, all others are computed anew."""
    wanted = embed("gallery", SPEC, "none", tmp_path, Reading("webdataset", 1, batch=1))
    calls = []
    views_of = embeddings.views

    def dying(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 12:  # in the second chunk of eight batches
            raise KeyboardInterrupt
        return views_of(*given)

    monkeypatch.setattr(embeddings, "views", dying)
    with pytest.raises(KeyboardInterrupt):
        embed("gallery", SPEC, "none", tmp_path, Reading("webdataset", 1, batch=1))
    assert [path.suffix for path in sorted((tmp_path / "here").iterdir())] == [".chunks", ".partial"]
    found = embed("gallery", SPEC, "none", tmp_path, Reading("webdataset", 1, batch=1))
    assert np.array_equal(found, wanted) and len(calls) == 12 + len(wanted) - 8


def test_two_evaluations_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    def again() -> Any:
        return embedded(model(), View([park()], "gallery"), alone(SPEC, tmp_path / "here"))

    with again() as first:
        wanted = np.array(first)
        with again() as second:
            assert np.array_equal(second, wanted) and second.filename != first.filename
        assert [path.name for path in (tmp_path / "here").glob("*.npy")] == [Path(first.filename).name]
        (tmp_path / "here" / "other.lock").touch()  # of one that was killed
        with again() as third:
            assert third.filename == second.filename and np.array_equal(third, wanted)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["other.lock"]


@pytest.mark.parametrize("cpus, ranks, wanted", [(64, 8, 8), (256, 8, 16), (64, 1, 16), (2, 8, 1)])
def test_ranks_share_a_machine(monkeypatch: pytest.MonkeyPatch, cpus: int, ranks: int, wanted: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cpus)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert spread_over(ALONE).threads == wanted


def test_what_can_be_scored(tmp_path: Path) -> None:
    assert can_score(park())
    rows: list[list[tuple[str, int | None, int, str]]] = [
        [("train", 1, 1, "person")],
        [("query", 1, 1, "person"), ("train", 1, 2, "person")],
        [("query", None, 1, "person"), ("gallery", 1, 2, "person")],
    ]
    for number, some in enumerate(rows):
        (tmp_path / str(number)).mkdir()
        assert not can_score(make(tmp_path / str(number), some))


def test_a_dataset_without_a_match_is_reported(tmp_path: Path) -> None:
    index = make(tmp_path, [("query", 1, 1, "person"), ("gallery", 1, 1, "person"), ("gallery", 2, 2, "person")])
    with pytest.raises(DataError, match="none of 1 queries has an image of its identity on another camera"):
        evaluate(model(), index, alone(ImageSpec(40, 20), tmp_path))


def test_a_model_that_diverged_is_reported(tmp_path: Path) -> None:
    broken = model()
    with torch.no_grad():
        next(broken.embedding.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"park: embeddings of \d+ of \d+ images are not finite"):
        evaluate(broken, park(), alone(ImageSpec(40, 20), tmp_path))
