"""Decoded batches: the right images, changed as drawn, the same from both loaders and however they are read."""

from __future__ import annotations

import builtins
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embae.datasets.errors import DataError
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import Record
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.batch import Batch, Work
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.loading.open_loader import LoaderName, open_loader
from embae.datasets.loading.view_reader import ViewReader
from embae.datasets.sampling.pk_sampler import PKOptions, PKSampler
from embae.datasets.sampling.sequential_sampler import SequentialSampler
from embae.datasets.sampling.shuffled_sampler import ShuffledSampler
from embae.datasets.sampling.view import View

SPEC = ImageSpec(64, 32)
ALL = Augment(flip=True, crop=True, pad=4, erase=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=15)
KINDS = {
    "plain": Augment(), "flip": Augment(flip=True), "crop": Augment(crop=True), "pad": Augment(pad=6),
    "erase": Augment(erase=1.0), "brightness": Augment(brightness=0.5), "contrast": Augment(contrast=0.5),
    "saturation": Augment(saturation=0.8), "hue": Augment(hue=90),
    "usual": Augment(flip=True, crop=True, erase=0.5), "all": ALL,
}
LOADERS: tuple[LoaderName, ...] = ("dali", "webdataset")


def work(index: Index, augment: Augment = ALL, **options: Any) -> Work:
    sampler = PKSampler(View([index], "train"), PKOptions(P=4, K=4), seed=0, stage="s")
    return Work(**{"sampler": sampler, "spec": SPEC, "augment": augment, "seed": 0, "stage": "s", "start": 0, "stop": 2,
                   **options})


def load(given: Work, loader: LoaderName = "dali", threads: int = 2) -> list[Batch]:
    opened = open_loader(given, loader=loader, device=torch.device("cpu"), threads=threads)
    found = list(opened)
    opened.close()
    return found


def pixels(batches: list[Batch], spec: ImageSpec = SPEC) -> torch.Tensor:
    """Grey levels, `(N, 3, H, W)`."""
    images = torch.cat([batch.inputs for batch in batches])
    return (images * torch.tensor(spec.std).view(3, 1, 1) + torch.tensor(spec.mean).view(3, 1, 1)) * 255


def test_images_are_those_of_the_rows(stored: Index, photographs: list[Record]) -> None:
    (batch,) = load(work(stored, Augment(), stop=1, read=(72, 36)))
    files = {record.key: record.image.path for record in photographs}  # type: ignore[attr-defined]
    for row, image in zip(batch.rows, pixels([batch]), strict=True):
        with Image.open(files[stored.key(row)]) as file:
            wanted = np.asarray(file.resize((36, 72), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert abs(image.numpy() - wanted).mean() < 3  # stored as JPEG once more
    assert (batch.pid == stored.pid[batch.rows]).all() and (batch.camid == stored.camid[batch.rows]).all()
    assert set(batch.dataset.tolist()) == {0}


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_are_channels_last_and_normalised(stored: Index, loader: LoaderName) -> None:
    spec = replace(SPEC, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    plain, other = (load(work(stored, KINDS["usual"], spec=spec), loader)[0].inputs for spec in (SPEC, spec))
    for images in (plain, other):
        assert images.shape == (16, 3, 64, 32) and images.dtype == torch.float32 and images.device.type == "cpu"
        assert images.is_contiguous(memory_format=torch.channels_last)
    without_fill = work(stored, Augment(flip=True))
    a, b = (pixels(load(replace(without_fill, spec=spec), loader), spec) for spec in (SPEC, spec))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dataset", ["stored", "originals"])
@pytest.mark.parametrize("kind", KINDS)
def test_loaders_agree(kind: str, dataset: str, request: pytest.FixtureRequest) -> None:
    """In grey levels of 255: both decode alike; a resize differs by one at most, and colours by two."""
    given = work(request.getfixturevalue(dataset), KINDS[kind])
    assert given.stored_at_read_size == (dataset == "stored" and KINDS[kind].crop)
    dali, webdataset = (load(given, loader) for loader in LOADERS)
    assert all((a.rows == b.rows).all() for a, b in zip(dali, webdataset, strict=True))
    apart = (pixels(dali) - pixels(webdataset)).abs()
    print(f"{kind} {dataset}: mean {apart.mean():.4f}, max {apart.max():.2f}")
    most = 1.01 * (not given.stored_at_read_size) + 2.01 * given.augment.colours
    assert apart.max() <= max(most, 1e-3) and apart.mean() < 0.3


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("dataset", ["stored", "originals"])
def test_pixels_do_not_depend_on_ranks_threads_or_the_first_step(
    loader: LoaderName, dataset: str, request: pytest.FixtureRequest
) -> None:
    given = work(request.getfixturevalue(dataset), stop=4)
    whole = [batch.inputs for batch in load(given, loader)]
    for world_size, accumulate in ((2, 1), (3, 1), (1, 3), (3, 2)):
        ranks = [load(replace(given, rank=rank, world_size=world_size, accumulate=accumulate), loader, threads=1)
                 for rank in range(world_size)]
        for step, wanted in enumerate(whole):
            found = torch.cat([part.inputs for rank in ranks for part in rank if part.step == step])
            assert torch.equal(found, wanted), (world_size, accumulate, step)
    resumed = load(replace(given, start=2), loader, threads=3)
    assert [batch.step for batch in resumed] == [2, 3]
    assert all(torch.equal(found.inputs, wanted) for found, wanted in zip(resumed, whole[2:], strict=True))


@pytest.mark.parametrize("loader", LOADERS)
def test_flip_mirrors(stored: Index, loader: LoaderName) -> None:
    plain, flipped = (load(work(stored, augment), loader)[0] for augment in (Augment(), Augment(flip=True)))
    flip = work(stored, Augment(flip=True)).part(0)[1].flip
    assert 0 < flip.sum() < 16
    for slot, mirrored in enumerate(flip):
        wanted = plain.inputs[slot].flip(2) if mirrored else plain.inputs[slot]
        assert torch.equal(flipped.inputs[slot], wanted)
        assert not torch.equal(flipped.inputs[slot], wanted.flip(2))


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("augment", [Augment(crop=True), Augment(pad=6), Augment(crop=True, pad=6)], ids=str)
def test_crops_are_windows_of_the_image_in_a_frame_of_the_mean(
    stored: Index, augment: Augment, loader: LoaderName
) -> None:
    given = work(stored, augment)
    whole = pixels(load(replace(given, augment=Augment(), read=augment.read_size(SPEC)), loader)[:1])
    found = pixels(load(given, loader)[:1])
    fill = torch.tensor(SPEC.fill).view(1, 3, 1, 1)
    pad = augment.pad
    framed = fill.expand(16, 3, whole.shape[2] + 2 * pad, whole.shape[3] + 2 * pad).float().clone()
    framed[:, :, pad:pad + whole.shape[2], pad:pad + whole.shape[3]] = whole
    for slot, (top, left) in enumerate(given.part(0)[1].anchor.astype(int) + pad):
        wanted = framed[slot, :, top:top + 64, left:left + 32]
        torch.testing.assert_close(found[slot], wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("loader", LOADERS)
def test_erasing_leaves_the_mean_and_the_rest_alone(stored: Index, loader: LoaderName) -> None:
    given = work(stored, Augment(erase=0.6))
    plain, found = (pixels(load(replace(given, augment=augment), loader)[:1]) for augment in (Augment(), given.augment))
    erase = given.part(0)[1].erase.astype(int)
    assert 0 < (erase[:, 2] > 0).sum() < 16
    for slot, (top, left, height, width) in enumerate(erase):
        plain[slot, :, top:top + height, left:left + width] = torch.tensor(SPEC.fill).view(3, 1, 1)
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("loader", LOADERS)
def test_colours_mean_what_they_say(stored: Index, loader: LoaderName) -> None:
    plain = pixels(load(work(stored, Augment()), loader)[:1])

    def changed(**how: float) -> tuple[torch.Tensor, np.ndarray]:
        given = work(stored, Augment(**how))  # type: ignore[arg-type]
        return pixels(load(given, loader)[:1]), given.part(0)[1].colour

    found, colour = changed(brightness=0.4)
    factor = torch.tensor(colour[:, 0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, (plain * factor).clamp(0, 255), atol=0.6, rtol=0)
    found, colour = changed(contrast=0.4)
    factor = torch.tensor(colour[:, 1]).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, ((plain - 128) * factor + 128).clamp(0, 255), atol=1.1, rtol=0)
    grey = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    found, colour = changed(saturation=0.6)
    factor, luma = torch.tensor(colour[:, 2]).view(-1, 1, 1, 1), (plain * grey).sum(1, keepdim=True)
    torch.testing.assert_close(found, ((plain - luma) * factor + luma).clamp(0, 255), atol=2.1, rtol=0)
    found, colour = changed(hue=60)
    inside = ((found > 1) & (found < 254)).all(1, keepdim=True)
    moved = (found * grey).sum(1, keepdim=True) - luma
    assert moved[inside].abs().max() < 3  # turning the hue keeps the brightness
    assert (found - plain).abs().mean() > 5


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_may_differ_in_size_and_outlive_the_loader(stored: Index, loader: LoaderName) -> None:
    sampler = SequentialSampler(View([stored], "train"), batch=7, rows=np.arange(1, 32))
    found = load(work(stored, Augment(), sampler=sampler, stop=len(sampler)), loader)
    assert [len(batch.rows) for batch in found] == [len(batch.inputs) for batch in found] == [7, 7, 7, 7, 3]
    one = load(work(stored, Augment(), sampler=replace_batch(sampler, 31), stop=1), loader)
    assert torch.equal(torch.cat([batch.inputs for batch in found]), one[0].inputs)


def replace_batch(sampler: SequentialSampler, batch: int) -> SequentialSampler:
    return SequentialSampler(sampler.view, batch=batch, rows=np.arange(1, 32))


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_of_several_datasets(stored: Index, originals: Index, loader: LoaderName) -> None:
    sampler = ShuffledSampler(View([stored, originals], "train"), batch=20, seed=0, stage="s")
    (batch,) = load(work(stored, Augment(), sampler=sampler, stop=1), loader)
    assert set(batch.dataset.tolist()) == {0, 1}
    for number, index in enumerate((stored, originals)):
        rows = batch.rows[batch.dataset == number] - number * len(stored)
        single = SequentialSampler(View([index], "train"), batch=32, rows=np.arange(0, 32))
        (wanted,) = load(work(index, Augment(), sampler=single, stop=1), loader)
        assert torch.equal(batch.inputs[batch.dataset == number], wanted.inputs[rows])


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_are_read_ahead(stored: Index, loader: LoaderName, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, read = [], ViewReader.read
    monkeypatch.setattr(ViewReader, "read", lambda self, rows: asked.append(len(rows)) or read(self, rows))
    opened = open_loader(work(stored, stop=9), loader=loader, device=torch.device("cpu"), threads=1)
    batches = iter(opened)
    next(batches)
    assert len(asked) >= 3
    assert len(asked) + len(list(batches)) > 9 and len(asked) == 9
    opened.close()


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def threads_at_rest() -> int:
    """Once the kernel lists none any more that was joined a moment ago."""
    deadline, found = time.monotonic() + 10, threads()
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if (now := threads()) == found:
            break
        found = now
    return found


def files(below: Path) -> Iterator[str]:
    for link in Path("/proc/self/fd").iterdir():
        try:
            if (target := os.readlink(link)).startswith(str(below)):
                yield target
        except FileNotFoundError:
            pass  # the folder's own descriptor


@pytest.mark.parametrize("loader", LOADERS)
def test_close_frees_threads_and_files(stored: Index, loader: LoaderName) -> None:
    load(work(stored), loader)  # what stays for ever is there now
    before, open_files = threads_at_rest(), sorted(files(stored.root))
    opened = open_loader(work(stored, stop=9), loader=loader, device=torch.device("cpu"), threads=2)
    list(islice(opened, 2))
    assert threads() > before and sorted(files(stored.root)) > open_files
    opened.close()
    # The kernel may list a thread for a moment after it was joined.
    deadline = time.monotonic() + 10
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before and sorted(files(stored.root)) == open_files
    opened.close()


@pytest.mark.parametrize("loader", LOADERS)
def test_damaged_image_is_named(stored: Index, loader: LoaderName, tmp_path: Path) -> None:
    index = Index.open(shutil.copytree(stored.root, tmp_path / "set"))
    row = 17
    with (index.root / index.shards[index.shard[row]]).open("r+b") as file:
        file.seek(int(index.offset[row] + index.size[row] // 2))
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    sampler = SequentialSampler(View([index], "train"), batch=8, rows=np.arange(0, 32))
    with pytest.raises(DataError, match=f"{index.key(row)} .*checksum"):
        load(work(index, sampler=sampler, stop=4), loader)


def test_missing_dali_is_an_error_that_names_the_way_out(stored: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "nvidia":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "embae.datasets.loading.dali_loader", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"nvidia-dali-cuda130 .*data\.loader=webdataset"):
        open_loader(work(stored), loader="dali", device=torch.device("cpu"))
    assert open_loader(work(stored), loader="webdataset", device=torch.device("cpu")).name == "webdataset"


def test_a_mistake_of_ours_is_not_taken_for_missing_dali(stored: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embae.datasets.loading.dali_loader", None)
    with pytest.raises(ModuleNotFoundError):
        open_loader(work(stored), loader="dali", device=torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="skipped: no GPU")
@pytest.mark.parametrize("kind", ["usual", "all"])
@pytest.mark.parametrize("dataset", ["stored", "originals"])
def test_gpu_decodes_the_same_images(kind: str, dataset: str, request: pytest.FixtureRequest) -> None:
    """nvJPEG rounds and upsamples differently, so single pixels at edges may be farther apart."""
    given = work(request.getfixturevalue(dataset), KINDS[kind], stop=6)
    opened = open_loader(given, loader="dali", device=torch.device("cuda"), threads=2)
    found = []
    for batch in opened:
        assert batch.inputs.is_cuda and batch.inputs.is_contiguous(memory_format=torch.channels_last)
        found.append(batch)
    opened.close()
    for batch in found:  # after the end, so that memory taken back would show
        batch.inputs = batch.inputs.cpu()
    apart = (pixels(found) - pixels(load(given))).abs()
    assert apart.mean() < 2 and apart.quantile(0.99) < 16
    again = list(open_loader(given, loader="dali", device=torch.device("cuda"), threads=1))
    assert all(torch.equal(a.inputs, b.inputs.cpu()) for a, b in zip(found, again, strict=True))


def test_threads_are_this_ranks_share(stored: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    from embae.datasets.loading import webdataset_loader as wds
    seen: list[int] = []

    def remember(given: Work, *, device: torch.device, threads: int) -> None:
        seen.append(threads)

    monkeypatch.setattr(wds, "WebDatasetLoader", remember)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for ranks in ("1", "4", "99"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        open_loader(work(stored), loader="webdataset", device=torch.device("cpu"))
    open_loader(work(stored), loader="webdataset", device=torch.device("cpu"), threads=5)
    assert seen == [12, 3, 1, 5]
