"""``model.json``, the description of the model in an export: read without torch, so that a login node can check it.

The file is not trusted: every value is checked here, and `SavedModel.state` compares it with the weights before a model
is built from it.
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
from embae.trainer.model.domain import ModelDomain
from embae.trainer.model.known_cameras import KnownCameras
from embae.trainer.recipe.model import Model

FORMAT = 1
WEIGHTS, META = "model.safetensors", "model.json"
_MAX_BYTES = 16_000_000  # of model.json: the shapes of the weights of 10,000 cameras' heads take 4 million
_MAX_WIDTH = 2**20  # of a layer; the sizes of tensors then stay within 64 bits

Side = Annotated[int, Field(ge=1, le=4096, strict=True)]
Name = Annotated[str, Field(strict=True)]
Number = Annotated[int, Field(ge=-(2**31), lt=2**31, strict=True)]


class ModelManifest(Strict):
    """The content of ``model.json`` except for its format number; see `SavedModel`."""

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
            wrong.append("parts: expected backbone and other parts, each once")
        for key, value in (("model.embedding", self.model.embedding), ("model.hidden", self.model.hidden),
                           ("model.nuisance.dim", self.model.nuisance.dim), ("classes", self.classes)):
            if value > _MAX_WIDTH:
                wrong.append(f"{key}: {value:,} is wider than {_MAX_WIDTH:,}")
        if ("classifier" in self.parts) != (self.classes > 0):
            wrong.append("classes: expected at least 1 with a classifier, 0 without")
        if len({len(head) for head in self.heads}) != ("nuisance" in self.parts):
            wrong.append("heads: expected heads of one kind with a nuisance part, none without")
        wrong += [f"{key}: has duplicates" for key in ("heads", "cameras")
                  if len(set(getattr(self, key))) < len(getattr(self, key))]
        names = [(camera[0], name) for camera, name in zip(self.cameras, self.names, strict=False) if name is not None]
        if self.names and (len(self.names) != len(self.cameras) or len(set(names)) < len(names)):
            wrong.append("names: expected none, or a name or null for each camera, no two of a dataset alike")
        return checked(self, wrong)

    @property
    def domain(self) -> ModelDomain:
        """The heads, identities and cameras that the model is built for."""
        names = zip(self.cameras, self.names, strict=bool(self.names))
        known_cameras = KnownCameras(self.cameras, {camera: name for camera, name in names if name is not None})
        return ModelDomain(list(self.heads), self.classes, known_cameras)


def read_manifest(folder: Path) -> ModelManifest:
    """Reads the ``model.json`` of an export.

    Raises:
        WeightsError: Missing, damaged or of another format.
    """
    file = folder / META
    try:
        content = read_json(file, _MAX_BYTES)
    except FileNotFoundError:
        raise WeightsError(f"{folder}: not an export, {META} is missing; expected the folder <run>/<stage>/export") \
            from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: cannot be read ({error}); take the export from its run again") from error
    version = content.get("format") if isinstance(content, dict) else None
    if type(version) is not int or version != FORMAT:
        raise WeightsError(f"{file}: found format {version!r:.80}, expected {FORMAT}; another version of embae "
                           "wrote it")
    try:
        return ModelManifest.model_validate(content)
    except ValidationError as error:
        mistakes = "; ".join(map(_sentence, error.errors()[:5]))
        raise WeightsError(f"{file}: not the description of a model ({mistakes}); take the export from its run again") \
            from error


def check_weights(path: Path) -> None:
    """Checks the header of a safetensors file, which states how long the file must be.

    Raises:
        WeightsError: The file is missing or cut short, or its header is damaged.
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
    """Puts the recipe's key in front of an error about the export that it names."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{key}: {error}") from error


def _sentence(mistake: Any) -> str:
    return f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}".removeprefix(": ")
