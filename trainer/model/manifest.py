"""``model.json``, what an export says of its model: read without torch, so that a login node can look.

A stranger may have written it: every value is checked here, and `SavedModel.state` holds it against the weights before
anything is built by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from embae.datasets.fields import Positive, Strict, Whole, checked
from embae.datasets.files.json_files import read_json
from embae.trainer.errors import WeightsError
from embae.trainer.losses.parts import PartName
from embae.trainer.model.known_cameras import KnownCameras
from embae.trainer.recipe.model import Model

FORMAT = 1
WEIGHTS, META = "model.safetensors", "model.json"
_MOST = 16_000_000  # bytes of model.json: shapes of the weights of 10,000 cameras' heads have 4 million
_WIDEST = 2**20  # of a layer; sizes of tensors stay within 64 bits

Side = Annotated[int, Field(ge=1, le=4096, strict=True)]
Name = Annotated[str, Field(strict=True)]
Number = Annotated[int, Field(ge=-(2**31), lt=2**31, strict=True)]


class ModelManifest(Strict):
    """What ``model.json`` holds, but for its format; see `SavedModel`."""

    model_config = ConfigDict(extra="ignore")

    model: Model
    parts: list[PartName]
    image: tuple[Side, Side]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    heads: list[tuple[()] | tuple[Name] | tuple[Name, Number]]
    cameras: list[tuple[Name, Number]] = Field(default_factory=list)
    names: list[Name | None] = Field(default_factory=list)
    classes: Whole = 0

    @model_validator(mode="after")
    def _consistent(self) -> ModelManifest:
        wrong = []
        if "backbone" not in self.parts or len(set(self.parts)) < len(self.parts):
            wrong.append("parts: wanted backbone and others, each once")
        for key, value in (("model.embedding", self.model.embedding), ("model.hidden", self.model.hidden),
                           ("model.nuisance.dim", self.model.nuisance.dim), ("classes", self.classes)):
            if value > _WIDEST:
                wrong.append(f"{key}: {value:,} is wider than {_WIDEST:,}")
        if ("classifier" in self.parts) != (self.classes > 0):
            wrong.append("classes: wanted some where there is a classifier, 0 where not")
        if len({len(head) for head in self.heads}) != ("nuisance" in self.parts):
            wrong.append("heads: wanted those of one kind where there is a nuisance part, none where not")
        wrong += [f"{key}: repeats itself" for key in ("heads", "cameras")
                  if len(set(getattr(self, key))) < len(getattr(self, key))]
        called = [(camera[0], name) for camera, name in zip(self.cameras, self.names, strict=False) if name is not None]
        if self.names and (len(self.names) != len(self.cameras) or len(set(called)) < len(called)):
            wrong.append("names: wanted none, or a name or null for each camera, no two of a dataset alike")
        return checked(self, wrong)

    @property
    def known(self) -> KnownCameras:
        """The cameras that the model is calibrated on."""
        names = zip(self.cameras, self.names, strict=bool(self.names))
        return KnownCameras(self.cameras, {camera: name for camera, name in names if name is not None})


def read_description(folder: Path) -> ModelManifest:
    """Reads ``model.json`` of an export.

    Raises:
        ExportError: Missing, damaged or of another format.
    """
    file = folder / META
    try:
        found = read_json(file, _MOST)
    except FileNotFoundError:
        raise WeightsError(f"{folder}: not an export, {META} is missing; wanted the folder <run>/<stage>/export") \
            from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: cannot be read ({error}); take the export from its run again") from error
    form = found.get("format") if isinstance(found, dict) else None
    if type(form) is not int or form != FORMAT:
        raise WeightsError(f"{file}: found format {form!r:.80}, wanted {FORMAT}; it was written by another version of "
                          "embae")
    try:
        return ModelManifest.model_validate(found)
    except ValidationError as error:
        raise WeightsError(f"{file}: not the description of a model ({'; '.join(map(_said, error.errors()[:5]))}); "
                          "take the export from its run again") from error


def check_weights(path: Path) -> None:
    """Looks at the head of a safetensors file, which says how long the file must be.

    Raises:
        ExportError: Missing, cut short or damaged there.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: {'not a plain' if path.exists() else 'no such'} file")
    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error})") from error


@contextmanager
def named(key: str) -> Iterator[None]:
    """Puts the recipe's key before what is wrong with the export that it names."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{key}: {error}") from error


def _said(mistake: Any) -> str:
    return f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}".removeprefix(": ")
