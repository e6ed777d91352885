"""One synthetic image: a pure function of domain, seed, person, camera and shot."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from embae.datasets.synthetic.camera import Camera, hang
from embae.datasets.synthetic.domain import DOMAINS
from embae.datasets.synthetic.figure import draw_person
from embae.datasets.synthetic.palette import shade
from embae.datasets.synthetic.person import Person, dress
from embae.datasets.synthetic.scene import paint_scene
from embae.datasets.synthetic.skeleton import View, walk
from embae.datasets.synthetic.streams import stream

FINE = 2
"""Pictures are drawn this much finer than they are delivered, so that edges are smooth."""


@dataclass(frozen=True)
class SyntheticImage:
    """An image that is drawn when it is read; the same bytes every time, in every process.

    (Between releases of Pillow or NumPy single pixels may change, as both may change what they draw.)

    Attributes:
        domain: Name of the domain.
        seed: Seed of the whole domain.
        person: Who is seen.
        camid: By which camera.
        shot: Which of the images of that person by that camera.
        height: In pixels; images are half as wide.
        junk: A crop that a detector got wrong: half a person at most.
    """

    domain: str
    seed: int
    person: int
    camid: int
    shot: int
    height: int
    junk: bool = False

    def read(self) -> bytes:
        """The image as JPEG."""
        out = io.BytesIO()
        self._draw().save(out, "JPEG", quality=92)
        return out.getvalue()

    def __str__(self) -> str:
        kind = "junk" if self.junk else "person"
        place = f"synthetic {self.domain} (seed {self.seed})"
        return f"{place}: {kind} {self.person}, camera {self.camid}, shot {self.shot}"

    def _draw(self) -> Image.Image:
        camera = _camera(self.domain, self.seed, self.camid)
        # the images of one passage resemble each other: same way, same part of the scene
        passage = stream(self.domain, self.seed, "passage", self.person, self.camid)
        shot = stream(self.domain, self.seed, "shot", self.person, self.camid, self.shot, int(self.junk))
        heading = camera.heading + camera.heading_spread * float(passage.normal())
        place = float(passage.random())

        size = (self.height // 2 * FINE, self.height * FINE)
        scene = _scene(self.domain, self.seed, self.camid, size[1])
        left = int(np.clip(place + 0.08 * shot.normal(), 0, 1) * (scene.width - size[0]))
        picture = scene.crop((left, 0, left + size[0], size[1]))
        view = _frame(shot, camera, size, heading + 0.25 * float(shot.normal()), self.junk)
        _cast_shadow(picture, view, camera)
        person = _person(self.domain, self.seed, self.person)
        pose = walk(person, float(shot.uniform(0, math.tau)), int(shot.integers(-1, 2)))
        draw_person(picture, person, view, pose, camera.light)
        if shot.random() < camera.occluded:
            _occlude(shot, picture)
        return camera.record(shot, picture.reduce(FINE))


@lru_cache(maxsize=64)
def _camera(domain: str, seed: int, camid: int) -> Camera:
    return hang(stream(domain, seed, "camera", camid), DOMAINS[domain].cameras)


@lru_cache(maxsize=64)
def _scene(domain: str, seed: int, camid: int, height: int) -> Image.Image:
    elevation = _camera(domain, seed, camid).elevation
    return paint_scene(stream(domain, seed, "scene", camid), DOMAINS[domain].scenes, height, elevation)


@lru_cache(maxsize=1024)
def _person(domain: str, seed: int, person: int) -> Person:
    return dress(stream(domain, seed, "person", person), DOMAINS[domain].wardrobe)


def _frame(rng: np.random.Generator, camera: Camera, size: tuple[int, int], yaw: float, junk: bool) -> View:
    """Where the detector's box puts the person."""
    width, height = size
    # seen from above, a person is shorter, and the box fits that
    zoom = camera.zoom * math.exp(camera.crop_error * rng.normal()) / (0.15 + 0.85 * math.cos(camera.elevation))
    scale = 0.88 * height * zoom
    x = width * (0.5 + camera.crop_error * float(rng.normal()))
    y = height * (0.945 + 0.5 * camera.crop_error * float(rng.normal()))
    if junk:
        scale *= float(rng.uniform(1.2, 1.9))
        x += width * float(rng.choice([-1, 1])) * float(rng.uniform(0.35, 0.6))
        y += height * float(rng.uniform(-0.2, 0.7))
    return View(yaw, camera.elevation, scale, (x, y))


def _cast_shadow(picture: Image.Image, view: View, camera: Camera) -> None:
    x, y = view.foot
    long, flat = 0.2 * view.scale, 0.03 * view.scale * (1 + 2 * camera.elevation)
    centre = x - camera.light * 0.1 * view.scale
    box = (int(centre - long), int(y - flat), int(centre + long), int(y + flat))
    picture.paste((20, 20, 24), box[:2], _ellipse(max(2, box[2] - box[0]), max(2, box[3] - box[1])))


@lru_cache(maxsize=256)
def _ellipse(width: int, height: int) -> Image.Image:
    """A soft-edged ellipse, half opaque."""
    v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return Image.fromarray((np.clip(1.4 * (1 - u * u - v * v), 0, 1) * 120).astype(np.uint8))


def _occlude(rng: np.random.Generator, picture: Image.Image) -> None:
    """A post, a bench or a hedge between person and camera."""
    width, height = picture.size
    tone = shade((120, 118, 112), float(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.5:
        left = int(width * rng.uniform(0.1, 0.8))
        box = (left, 0, left + int(width * rng.uniform(0.08, 0.18)), height)
    else:
        box = (0, int(height * rng.uniform(0.6, 0.85)), width, height)
        if rng.random() < 0.5:
            tone = (58, 88, 50)
    picture.paste(tone, box)
