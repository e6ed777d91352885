"""Where images are and how they are read: `data` of a recipe and of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo, model_validator

from embae.datasets.fields import Count, Flag, Name, Positive, Strict, checked
from embae.datasets.loading.augment import Augment, ImageSpec
from embae.datasets.remote.cache import Cache
from embae.datasets.remote.url import Url, parse_location


class StageData(Strict):
    """What a stage reads: P × K for labelled stages, a plain global batch for the others."""

    from_: Literal["sources", "target", "all"] = Field(alias="from")
    labels: Name | None = None
    """The clustering stage whose pseudo-labels the target's images bear."""
    P: Count | dict[Name, Count] | None = None
    K: Count | None = None
    batch: Count | None = None
    weights: dict[Name, Positive] | None = None
    mix: Flag = False
    window: Count | None = None
    """Shards of a dataset that identities are drawn from at a time, for data that is far away; null: all of them.
    Of a target with pseudo-labels always all."""
    augment: Augment = Augment()

    @property
    def labelled(self) -> bool:
        """Whether batches are made of identities."""
        return self.batch is None

    @model_validator(mode="after")
    def _shape(self) -> StageData:
        wrong = []
        if self.labels and (self.from_ == "sources" or self.batch is not None):
            wrong.append("labels: pseudo-labels are the target's; they go with from: target or all, P and K")
        if (self.batch is None) == (self.P is None and self.K is None):
            wrong.append("batch: give either P and K (labelled images) or batch (any images)")
        elif self.batch is None and (self.P is None or self.K is None):
            wrong.append(f"{'P' if self.P is None else 'K'}: missing; a labelled stage needs both P and K")
        for key in ("weights", "mix", "window"):
            if self.batch is not None and getattr(self, key):
                wrong.append(f"{key}: belongs to labelled stages; plain batches are shuffled over all images")
        if self.labels and self.window and (self.from_ == "target" or self.mix):
            wrong.append("window: the images of a pseudo-label lie in any shards; leave it out")
        if self.mix and self.weights:
            wrong.append("weights: datasets do not take turns where mix is true; give one of them")
        if self.mix and isinstance(self.P, dict):
            wrong.append("P: give one number; with mix: true a batch is of all datasets")
        return checked(self, wrong)


def _located(value: Any, given: ValidationInfo) -> Path | Url:
    if not isinstance(value, (str, Path)):
        raise ValueError(f"found {value!r:.80}; wanted the path of a folder, or a url")
    return parse_location(value, given.data.get("cache", Cache()))


Side = Annotated[int, Field(ge=1, le=4096, strict=True)]  # pixels


class Data(Strict):
    """Where the images are, and how they are read."""

    cache: Cache = Cache()  # before root, which takes it along
    root: Annotated[Path | Url, PlainSerializer(str), PlainValidator(_located)] = Path("shards")
    """A folder, or a url."""
    sources: list[Name] = Field(default_factory=list)
    """None where every stage of the run reads the target alone."""
    target: Name
    image: tuple[Side, Side] = (256, 128)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    loader: Literal["dali", "webdataset"] = "dali"
    threads: Count | None = None
    synthetic: dict[Name, dict[str, int | str]] = Field(default_factory=dict)
    """Datasets to draw and shard if they are used and not there: name → options of ``embae shard synthetic``."""

    @property
    def spec(self) -> ImageSpec:
        """What the model takes."""
        return ImageSpec(*self.image, self.mean, self.std)

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        twice = sorted({name for name in self.sources if self.sources.count(name) > 1})
        wrong = [f"sources: {name} stands here twice" for name in twice]
        if self.synthetic and isinstance(self.root, Url):
            wrong.append("synthetic: is drawn into a folder, and root is a url; give one of them")
        return checked(self, wrong)
