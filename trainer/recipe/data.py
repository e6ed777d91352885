"""Where images are and how they are read: `data` of a recipe and of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo, model_validator

from embae.datasets.fields import Count, Flag, Name, Positive, Strict, checked
from embae.datasets.loading.augment import Augment
from embae.datasets.loading.image_spec import ImageSpec
from embae.datasets.remote.cache import Cache
from embae.datasets.remote.url import Url, parse_location


class StageData(Strict):
    """What a stage reads: P identities × K images for labelled stages, a plain global batch for the others."""

    from_: Literal["sources", "target", "all"] = Field(alias="from")
    labels: Name | None = None
    """The clustering stage whose pseudo-labels are the labels of the target's images."""
    P: Count | dict[Name, Count] | None = None
    K: Count | None = None
    batch: Count | None = None
    weights: dict[Name, Positive] | None = None
    mix: Flag = False
    window: Count | None = None
    """Shards of a dataset that identities are drawn from at a time, for remote data; null: all of them.
    A target with pseudo-labels always uses all of its shards."""
    augment: Augment = Augment()

    @property
    def labelled(self) -> bool:
        """Whether batches are drawn by identity."""
        return self.batch is None

    @model_validator(mode="after")
    def _shape(self) -> StageData:
        wrong = []
        if self.labels and (self.from_ == "sources" or self.batch is not None):
            wrong.append("labels: pseudo-labels belong to the target; use them with from: target or all, P and K")
        if (self.batch is None) == (self.P is None and self.K is None):
            wrong.append("batch: give either P and K (labelled images) or batch (any images)")
        elif self.batch is None and (self.P is None or self.K is None):
            wrong.append(f"{'P' if self.P is None else 'K'}: missing; a labelled stage needs both P and K")
        for key in ("weights", "mix", "window"):
            if self.batch is not None and getattr(self, key):
                wrong.append(f"{key}: belongs to labelled stages; plain batches are shuffled over all images")
        if self.labels and self.window and (self.from_ == "target" or self.mix):
            wrong.append("window: the images of a pseudo-label may be in any shard; leave it out")
        if self.mix and self.weights:
            wrong.append("weights: mix: true draws each batch from all datasets, which do not take turns; "
                         "give weights or mix")
        if self.mix and isinstance(self.P, dict):
            wrong.append("P: found a number for each dataset; expected one number, as mix: true draws each batch from "
                         "all datasets")
        return checked(self, wrong)


def _parse_root(value: Any, fields: ValidationInfo) -> Path | Url:
    if not isinstance(value, (str, Path)):
        raise ValueError(f"found {value!r:.80}; expected the path of a folder, or a url")
    return parse_location(value, fields.data.get("cache", Cache()))


Side = Annotated[int, Field(ge=1, le=4096, strict=True)]  # pixels


class Data(Strict):
    """Where the images are, and how they are read."""

    cache: Cache = Cache()  # before root, whose validation reads it
    root: Annotated[Path | Url, PlainSerializer(str), PlainValidator(_parse_root)] = Path("shards")
    """A folder, or a url."""
    sources: list[Name] = Field(default_factory=list)
    """Empty if every stage of the run reads only the target."""
    target: Name
    image: tuple[Side, Side] = (256, 128)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    loader: Literal["dali", "webdataset"] = "dali"
    threads: Count | None = None
    synthetic: dict[Name, dict[str, int | str]] = Field(default_factory=dict)
    """Datasets to draw and shard if they are used and do not exist: name → options of ``embae shard synthetic``."""

    @property
    def spec(self) -> ImageSpec:
        """Size and normalisation of the model's input images."""
        return ImageSpec(*self.image, self.mean, self.std)

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        twice = sorted({name for name in self.sources if self.sources.count(name) > 1})
        wrong = [f"sources: names {name} twice; remove one" for name in twice]
        if self.synthetic and isinstance(self.root, Url):
            wrong.append("synthetic: is drawn into a folder, but root is a url; remove synthetic, or set root to a "
                         "folder")
        return checked(self, wrong)
