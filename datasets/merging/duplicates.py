"""Images that several datasets have in common, re-encoded or resized: found by their perceptual hashes.

What matters most is an image that one dataset trains on and another tests on: scores on it say nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from embae.datasets.console.progress import Report, progress
from embae.datasets.files.atomic import write_text
from embae.datasets.index.arrow_index import Index
from embae.datasets.index.records import SPLITS
from embae.datasets.merging.perceptual_hash import BITS, hashes

DISTANCE = 12
"""Bits of 256 that two images may differ in and still be taken for one.

Measured on the 13,245 images of CUHK03, CUHK01 and PKU-Reid, each re-encoded at quality 50, 75 and 95 with halved
chroma, in its own size and resized to 128×64 and 256×128: 99.9 % are within 12 bits of the original (the worst of the
nine, quality 50: 99.8 %), all within 18. Of 46 million pairs from different sets none is nearer than 66 bits. Of other
images of one set, 16 pairs are equal (frames stored twice); the next is at 33 bits, of other people at 43.
"""

COLUMNS = ("dataset", "split", "key", "other_dataset", "other_split", "other_key", "distance")
_BLOCK = 1 << 20  # pairs or hashes compared together

Use = Literal["train", "test"]


@dataclass(frozen=True)
class Overlap:
    """What two datasets have in common: `images` of one (its training or test images) are among those of the other."""

    dataset: str
    use: Use
    images: int
    other: str
    other_use: Use
    other_images: int

    @property
    def leak(self) -> bool:
        """Whether one trains on what the other tests on."""
        return self.use != self.other_use

    def __str__(self) -> str:
        if self.leak:
            tests, trains = (self.dataset, self.other) if self.use == "test" else (self.other, self.dataset)
            tested, trained = ((self.images, self.other_images) if self.use == "test"
                               else (self.other_images, self.images))
            return (f"test images in training: {_images(tested)} that {tests} tests on (query, gallery) "
                    f"{_are(tested)} among the training images of {trains} ({_images(trained)} there)")
        kind = "training" if self.use == "train" else "test"
        return (f"{_images(self.images, kind)} of {self.dataset} {_are(self.images)} among the {kind} images of "
                f"{self.other} ({_images(self.other_images)} there)")


@dataclass(frozen=True)
class Duplicates:
    """Near-duplicates across datasets.

    Attributes:
        indexes: The datasets.
        pairs: `(pairs, 2)`, rows counted over all datasets, those that leak first: every image that has a duplicate
            among another dataset's training or test images, beside the nearest of them.
        distances: `(pairs,)`, in bits.
        overlaps: Counts by pair of datasets, leaks first.
    """

    indexes: Sequence[Index]
    pairs: np.ndarray
    distances: np.ndarray
    overlaps: list[Overlap]

    def write(self, path: Path) -> None:
        """Writes the pairs as CSV, `COLUMNS`."""
        starts = np.cumsum([0] + [len(index) for index in self.indexes])

        def location(row: int) -> list[str]:
            number = int(np.searchsorted(starts, row, side="right")) - 1
            index, local = self.indexes[number], row - int(starts[number])
            return [index.name, SPLITS[index.split[local]], index.key(local)]

        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(COLUMNS)
        for (row, other), distance in zip(self.pairs.tolist(), self.distances.tolist(), strict=True):
            lines.writerow([*location(row), *location(other), distance])
        write_text(path, text.getvalue())


def find_duplicates(indexes: Sequence[Index], workers: int | None = None, progress: Report = progress) -> Duplicates:
    """Looks for images that two datasets have in common.

    Args:
        indexes: The datasets.
        workers: Processes that decode; None takes all cores this process may use.
        progress: How to report; gets the images as they are done.

    Raises:
        DataError: An image cannot be read.
    """
    test = [index.split != SPLITS.index("train") for index in indexes]
    group = np.concatenate([2 * number + used for number, used in enumerate(test)]).astype(np.int32)
    row, other, distance = nearest(hashes(indexes, workers, progress), group)
    overlaps = []
    for one, two in combinations(range(2 * len(indexes)), 2):
        images = int(((group[row] == one) & (group[other] == two)).sum())
        if images:
            back = int(((group[row] == two) & (group[other] == one)).sum())
            uses: tuple[Use, Use] = ("train", "test")
            overlaps.append(Overlap(indexes[one // 2].name, uses[one % 2], images,
                                    indexes[two // 2].name, uses[two % 2], back))
    pairs, first = np.unique(np.sort(np.stack([row, other], 1), axis=1), axis=0, return_index=True)
    leak = (group[pairs] % 2).sum(1) == 1
    order = np.argsort(~leak, kind="stable")
    overlaps.sort(key=lambda overlap: not overlap.leak)
    return Duplicates(list(indexes), pairs[order], distance[first][order], overlaps)


def nearest(image_hashes: np.ndarray, group: np.ndarray,
            within: int = DISTANCE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every image the nearest one of each group of another dataset, where one is near enough: exact.

    Of 256 bits in `within` + 2 pieces, two at least are the same where no more than `within` bits differ; so what
    agrees in a pair of pieces, for one pair after the other, is all there is to compare.

    Args:
        image_hashes: `(images, 4)` uint64, the hashes.
        group: `(images,)`; groups 2·d and 2·d + 1 are of dataset d.
        within: The largest distance, in bits.

    Returns:
        Image, its nearest one (of equally near ones the first), their distance: three `(N,)`.
    """
    order = np.lexsort((*image_hashes.T, group))
    new = np.ones(len(order), np.bool_)  # images of one group that are equal are looked for once
    new[1:] = (group[order[1:]] != group[order[:-1]]) | (image_hashes[order[1:]] != image_hashes[order[:-1]]).any(1)
    first, entry = order[new], np.empty(len(order), np.int64)
    entry[order] = np.cumsum(new) - 1
    del order, new
    codes, groups = image_hashes[first], group[first]
    best = tuple(np.empty(0, np.int64) for _ in range(3))
    held: list[tuple[np.ndarray, ...]] = []
    for a, b in _candidates(codes, within + 2):
        apart = groups[a] >> 1 != groups[b] >> 1
        a, b = a[apart], b[apart]
        distance = np.bitwise_count(codes[a] ^ codes[b]).sum(1, dtype=np.int64)
        near = distance <= within
        held.append((a[near], b[near], distance[near]))
        if sum(len(pairs[0]) for pairs in held) > 4 * _BLOCK:
            best, held = _best(best, held, groups, first), []
    a, b, distance = _best(best, held, groups, first)
    # Back to images: each has what its entry has.
    begin, end = np.searchsorted(a, entry), np.searchsorted(a, entry, side="right")
    image = np.repeat(np.arange(len(entry)), end - begin)
    at = np.repeat(begin - np.cumsum(end - begin) + (end - begin), end - begin) + np.arange(len(image))
    return image, first[b[at]], distance[at]


def _best(best: tuple[np.ndarray, ...], held: list[tuple[np.ndarray, ...]], groups: np.ndarray,
          first: np.ndarray) -> tuple[np.ndarray, ...]:
    """(entry, other, distance), sorted: for each entry the nearest other of every group."""
    a = np.concatenate([best[0], *(way for pairs in held for way in (pairs[0], pairs[1]))])
    b = np.concatenate([best[1], *(way for pairs in held for way in (pairs[1], pairs[0]))])
    distance = np.concatenate([best[2], *(pairs[2] for pairs in held for _ in range(2))])
    order = np.lexsort((first[b], distance, groups[b], a))
    a, b, distance = a[order], b[order], distance[order]
    keep = np.ones(len(a), np.bool_)
    keep[1:] = (a[1:] != a[:-1]) | (groups[b[1:]] != groups[b[:-1]])
    return a[keep], b[keep], distance[keep]


def _candidates(codes: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs that agree in two of `count` pieces, in blocks; a pair comes once for every two pieces it agrees in."""
    pieces = _pieces(codes, count)
    for one, two in combinations(range(count), 2):
        key = pieces[one].astype(np.uint64) << np.uint64(32) | pieces[two]
        order = np.argsort(key)
        key = key[order]
        shift, active = 1, np.flatnonzero(key[1:] == key[:-1])
        while len(active):
            for start in range(0, len(active), _BLOCK):
                at = active[start : start + _BLOCK]
                yield order[at], order[at + shift]
            shift += 1
            active = active[active < len(key) - shift]
            active = active[key[active] == key[active + shift]]


def _pieces(codes: np.ndarray, count: int) -> np.ndarray:
    """Every count-th bit from each of the first `count`, as numbers: `(count, codes)` uint32."""
    pieces = np.empty((count, len(codes)), np.uint32)
    weights = 1 << np.arange(-(-BITS // count), dtype=np.uint32)
    for start in range(0, len(codes), _BLOCK // 16):
        block = slice(start, start + _BLOCK // 16)
        bits = np.unpackbits(codes[block].view(np.uint8), axis=1)
        for number in range(count):
            piece = bits[:, number::count]
            pieces[number, block] = piece @ weights[: piece.shape[1]]
    return pieces


def _images(number: int, kind: str = "") -> str:
    return f"{number:,} {kind}{' ' * bool(kind)}image{'s' * (number != 1)}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
