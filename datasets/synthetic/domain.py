"""The domains: places with a wardrobe, a kind of camera and a scenery of their own."""

from __future__ import annotations

from dataclasses import dataclass

from embae.datasets.synthetic.camera import CameraStyle
from embae.datasets.synthetic.person import Wardrobe
from embae.datasets.synthetic.scene import SceneStyle


@dataclass(frozen=True)
class Domain:
    """A place where people are seen."""

    wardrobe: Wardrobe
    cameras: CameraStyle
    scenes: SceneStyle


PLAZA = Domain(  # a square in summer: light clothes, hard warm sun
    Wardrobe(
        uppers={"tee": 5, "shirt": 3, "dress": 2, "hoodie": 1},
        upper_colours={
            "white": 4,
            "sand": 3,
            "sky": 3,
            "coral": 3,
            "navy": 2,
            "olive": 2,
            "black": 2,
            "pink": 1,
            "mustard": 1,
            "teal": 1,
        },
        patterns={"plain": 6, "stripes": 2, "checks": 1, "logo": 2, "pinstripes": 1},
        lowers={"trousers": 4, "shorts": 4, "skirt": 2},
        lower_colours={"denim": 3, "sand": 3, "white": 2, "black": 2, "olive": 2, "navy": 2, "coral": 1},
        shoe_colours={"white": 4, "brown": 3, "black": 2},
        bags={"none": 5, "shoulder": 3, "backpack": 2, "handbag": 2},
        bag_colours={"brown": 3, "black": 3, "camel": 2, "sand": 1, "red": 1},
        headwear={"none": 7, "cap": 2, "hat": 2, "scarf": 1},
        hair={"short": 5, "long": 3, "ponytail": 2, "bob": 2, "bun": 1, "bald": 1},
        hair_colours={"black": 2, "dark": 3, "brown": 3, "blond": 2, "grey": 1},
        skin=(2, 3, 3, 2, 1, 1),
        open_front=0.35,
    ),
    CameraStyle(
        tint=(1.04, 1.0, 0.93),
        tint_spread=0.025,
        saturation=(0.96, 1.08),
        exposure=(0.94, 1.1),
        gamma=(0.96, 1.1),
        haze=(0.0, 0.03),
        blur=(0.25, 0.55),
        noise=(2.0, 4.0),
        detail=(0.8, 1.0),
        quality=(72, 88),
        elevation=(0.14, 0.29),
        crop_error=(0.015, 0.03),
        occluded=(0.0, 0.06),
    ),
    SceneStyle(
        ("facade",),
        ("slabs", "tiles"),
        ((206, 190, 160), (190, 160, 130), (176, 172, 160)),
        ((186, 176, 158), (160, 150, 138)),
        ((150, 70, 50), (70, 90, 120), (200, 170, 90)),
    ),
)

STATION = Domain(  # commuters in winter: dark coats under greenish tubes
    Wardrobe(
        uppers={"coat": 5, "jacket": 4, "hoodie": 1, "vest": 1},
        upper_colours={
            "black": 4,
            "charcoal": 3,
            "navy": 3,
            "camel": 2,
            "grey": 2,
            "burgundy": 2,
            "olive": 2,
            "brown": 1,
            "red": 1,
            "blue": 1,
        },
        patterns={"plain": 8, "checks": 2, "pinstripes": 1, "block": 1},
        lowers={"trousers": 8, "skirt": 1},
        lower_colours={"black": 3, "charcoal": 3, "denim": 3, "grey": 2, "navy": 2, "brown": 2, "camel": 1},
        shoe_colours={"black": 5, "brown": 3, "white": 1},
        bags={"none": 3, "backpack": 3, "suitcase": 3, "shoulder": 3, "handbag": 2},
        bag_colours={"black": 4, "charcoal": 3, "brown": 2, "burgundy": 1, "blue": 1},
        headwear={"none": 6, "beanie": 3, "hat": 1, "scarf": 1},
        hair={"short": 5, "long": 3, "bob": 2, "ponytail": 1, "bun": 1, "bald": 2},
        hair_colours={"black": 3, "dark": 3, "brown": 2, "blond": 1, "grey": 2},
        skin=(3, 3, 2, 1, 1, 1),
        open_front=0.4,
    ),
    CameraStyle(
        tint=(0.93, 1.03, 0.96),
        tint_spread=0.025,
        saturation=(0.8, 0.96),
        exposure=(0.9, 1.06),
        gamma=(0.9, 1.02),
        haze=(0.02, 0.06),
        blur=(0.35, 0.7),
        noise=(4.0, 7.5),
        detail=(0.75, 0.95),
        quality=(62, 78),
        elevation=(0.26, 0.47),
        crop_error=(0.02, 0.035),
        occluded=(0.03, 0.1),
    ),
    SceneStyle(
        ("columns",),
        ("tiles", "slabs"),
        ((150, 158, 150), (190, 192, 184), (112, 116, 118)),
        ((96, 98, 100), (128, 124, 116), (74, 76, 82)),
        ((220, 190, 40), (40, 80, 150), (160, 40, 40)),
    ),
)

CAMPUS = Domain(  # students in autumn: hoodies, jeans, backpacks; low cameras under a blue sky
    Wardrobe(
        uppers={"hoodie": 5, "tee": 3, "shirt": 3, "jacket": 2},
        upper_colours={
            "grey": 3,
            "navy": 3,
            "black": 3,
            "burgundy": 3,
            "forest": 2,
            "mustard": 2,
            "white": 2,
            "purple": 1,
            "red": 1,
            "green": 1,
        },
        patterns={"plain": 4, "logo": 4, "checks": 3, "block": 1, "stripes": 1},
        lowers={"trousers": 8, "shorts": 2, "skirt": 1},
        lower_colours={"denim": 4, "black": 3, "navy": 2, "grey": 2, "sand": 2, "olive": 1, "burgundy": 1},
        shoe_colours={"white": 5, "black": 3, "red": 1, "grey": 1},
        bags={"backpack": 6, "none": 3, "shoulder": 2},
        bag_colours={"black": 4, "navy": 2, "grey": 2, "forest": 1, "red": 1, "mustard": 1},
        headwear={"none": 7, "cap": 3, "beanie": 2},
        hair={"short": 5, "long": 4, "ponytail": 3, "bob": 1, "bun": 2},
        hair_colours={"black": 4, "dark": 3, "brown": 3, "blond": 2, "red": 1},
        skin=(2, 2, 2, 2, 2, 1),
        open_front=0.45,
    ),
    CameraStyle(
        tint=(0.95, 0.99, 1.07),
        tint_spread=0.025,
        saturation=(0.9, 1.04),
        exposure=(0.92, 1.08),
        gamma=(0.94, 1.12),
        haze=(0.0, 0.04),
        blur=(0.2, 0.5),
        noise=(2.5, 5.0),
        detail=(0.78, 1.0),
        quality=(68, 85),
        elevation=(0.08, 0.23),
        crop_error=(0.015, 0.035),
        occluded=(0.01, 0.09),
    ),
    SceneStyle(
        ("trees", "facade"),
        ("lawn", "slabs"),
        ((150, 84, 66), (170, 120, 96), (140, 150, 160)),
        ((96, 130, 66), (140, 138, 128), (116, 120, 80)),
        ((120, 60, 40), (210, 200, 190), (60, 90, 60)),
    ),
)

MALL = Domain(  # families under warm lamps, seen from the ceiling
    Wardrobe(
        uppers={"tee": 3, "jacket": 3, "dress": 2, "shirt": 2, "coat": 1, "vest": 1},
        upper_colours={
            "black": 3,
            "pink": 3,
            "white": 3,
            "teal": 2,
            "red": 2,
            "purple": 2,
            "grey": 2,
            "sky": 2,
            "camel": 1,
            "lime": 1,
        },
        patterns={"plain": 6, "stripes": 3, "logo": 1, "checks": 1, "block": 2},
        lowers={"trousers": 6, "skirt": 3, "shorts": 1},
        lower_colours={"black": 3, "denim": 3, "grey": 2, "white": 2, "brown": 2, "pink": 1, "purple": 1},
        shoe_colours={"black": 3, "white": 3, "pink": 1, "brown": 2},
        bags={"carrier": 5, "handbag": 4, "none": 3, "shoulder": 2},
        bag_colours={"white": 3, "black": 3, "red": 2, "mustard": 1, "pink": 1, "camel": 1},
        headwear={"none": 8, "scarf": 3, "cap": 1},
        hair={"long": 4, "short": 4, "bob": 3, "ponytail": 2, "bun": 1, "bald": 1},
        hair_colours={"black": 3, "dark": 3, "brown": 2, "blond": 2, "red": 1, "grey": 1},
        skin=(2, 3, 3, 2, 1, 1),
        open_front=0.45,
    ),
    CameraStyle(
        tint=(1.09, 0.99, 0.88),
        tint_spread=0.02,
        saturation=(0.92, 1.06),
        exposure=(0.94, 1.08),
        gamma=(0.92, 1.04),
        haze=(0.01, 0.05),
        blur=(0.3, 0.6),
        noise=(2.5, 5.0),
        detail=(0.75, 0.93),
        quality=(65, 82),
        elevation=(0.32, 0.53),
        crop_error=(0.02, 0.035),
        occluded=(0.03, 0.1),
    ),
    SceneStyle(
        ("shops",),
        ("tiles", "boards"),
        ((210, 196, 170), (180, 170, 160)),
        ((206, 196, 180), (150, 120, 92), (176, 176, 176)),
        ((190, 60, 90), (60, 130, 140), (230, 180, 60)),
    ),
)

HARBOUR = Domain(  # dockers and walkers in grey weather: bright work wear, coarse old cameras
    Wardrobe(
        uppers={"vest": 3, "jacket": 5, "hoodie": 3, "coat": 1},
        upper_colours={
            "navy": 3,
            "orange": 3,
            "blue": 3,
            "yellow": 2,
            "grey": 2,
            "forest": 2,
            "lime": 1,
            "red": 1,
            "white": 1,
        },
        patterns={"plain": 5, "block": 4, "stripes": 1, "logo": 2},
        lowers={"trousers": 9, "shorts": 1},
        lower_colours={"navy": 3, "charcoal": 3, "denim": 2, "olive": 2, "orange": 1, "sand": 1, "brown": 1},
        shoe_colours={"black": 4, "brown": 3, "mustard": 1},
        bags={"none": 6, "backpack": 2, "shoulder": 2, "carrier": 1},
        bag_colours={"black": 3, "olive": 2, "blue": 1, "orange": 1},
        headwear={"none": 3, "cap": 3, "beanie": 4},
        hair={"short": 6, "bald": 2, "long": 1, "ponytail": 1},
        hair_colours={"black": 2, "dark": 3, "brown": 3, "blond": 2, "grey": 2},
        skin=(3, 3, 2, 1, 1, 1),
        open_front=0.35,
    ),
    CameraStyle(
        tint=(0.97, 1.0, 1.03),
        tint_spread=0.02,
        saturation=(0.78, 0.92),
        exposure=(0.96, 1.1),
        gamma=(0.92, 1.06),
        haze=(0.04, 0.1),
        blur=(0.4, 0.75),
        noise=(3.0, 6.0),
        detail=(0.7, 0.85),
        quality=(60, 75),
        elevation=(0.14, 0.35),
        crop_error=(0.02, 0.04),
        occluded=(0.01, 0.07),
    ),
    SceneStyle(
        ("quay",),
        ("boards", "slabs"),
        ((186, 194, 198), (160, 170, 176)),
        ((130, 122, 112), (110, 96, 80), (150, 152, 150)),
        ((180, 70, 50), (50, 90, 130), (90, 120, 90)),
    ),
)

DOMAINS: dict[str, Domain] = {"plaza": PLAZA, "station": STATION, "campus": CAMPUS, "mall": MALL, "harbour": HARBOUR}
