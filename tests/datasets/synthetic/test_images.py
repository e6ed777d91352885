"""What a synthetic image shows, and that it always shows the same."""

import io
import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from embae.datasets.readers.synthetic import DOMAIN_NAMES, list_records
from embae.datasets.synthetic.image import SyntheticImage

SAMPLE = SyntheticImage("plaza", 0, person=3, camid=2, shot=1, height=96)


def pixels(image: SyntheticImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.read())).convert("RGB"), dtype=float)


def test_an_image_is_a_pure_function_of_its_fields() -> None:
    first = SAMPLE.read()
    # others in between must not matter
    replace(SAMPLE, person=4).read()
    replace(SAMPLE, shot=2).read()
    assert SAMPLE.read() == first


def test_another_process_draws_the_same_bytes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(pickle.loads(pickle.dumps(SAMPLE)).read) == SAMPLE.read()


@pytest.mark.parametrize(
    "change",
    [{"domain": "station"}, {"seed": 1}, {"person": 4}, {"camid": 1}, {"shot": 0}, {"junk": True}, {"height": 100}],
    ids=lambda change: next(iter(change)),
)
def test_every_field_matters(change: dict[str, str | int]) -> None:
    assert replace(SAMPLE, **change).read() != SAMPLE.read()


@pytest.mark.parametrize("height", [32, 97, 144])
def test_images_are_half_as_wide_as_high(height: int) -> None:
    image = Image.open(io.BytesIO(replace(SAMPLE, height=height).read()))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (height // 2, height))


@pytest.mark.parametrize("domain", DOMAIN_NAMES)
def test_everything_listed_can_be_drawn(domain: str) -> None:
    for record in list_records(domain, identities=6, cameras=2, images_per_camera=2, height=64):
        # a blank or a broken picture has next to no contrast
        assert pixels(record.image).std() > 8, str(record.image)


def mean_colour(domain: str, camid: int) -> np.ndarray:
    return np.mean([pixels(SyntheticImage(domain, 0, pid, camid, 0, 64)).mean((0, 1)) for pid in range(12)], axis=0)


def test_cameras_and_domains_differ_in_colour() -> None:
    for domain in ("plaza", "station", "campus"):
        colours = [mean_colour(domain, camid) for camid in (1, 2, 3, 4)]
        gaps = [np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]]
        assert min(gaps) > 3, domain
    assert np.abs(mean_colour("plaza", 1) - mean_colour("station", 1)).max() > 15


def test_a_person_keeps_its_looks_from_camera_to_camera() -> None:
    """Once the cameras' own means are taken off, the same person is nearer than another one."""
    people, cameras = range(1, 25), (1, 2, 3)
    seen = np.array([[pixels(SyntheticImage("plaza", 0, pid, camid, 0, 64)) for pid in people] for camid in cameras])
    trunk = seen[:, :, 12:56, 8:24].reshape(3, 24, 11, 4, 4, 4, 3).mean((3, 5)).reshape(3, 24, -1)
    trunk -= trunk.mean(1, keepdims=True)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        distance = np.linalg.norm(trunk[a][:, None] - trunk[b][None], axis=2)
        same = np.diag(distance).mean()
        other = distance[~np.eye(24, dtype=bool)].mean()
        assert same < 0.9 * other
