"""A model on disk, as a stage exports it: the weights of every part, and what is needed to use them.

    <stage>/export/model.safetensors    weights and buffers, by the names of `EmbAE.state_dict`
    <stage>/export/model.json           parts, sizes, image size, normalisation, the images that each nuisance head
                                        serves, the cameras that the model is calibrated on, and their names

Weights are stored as safetensors, which cannot run code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from embae.datasets.files.json_files import write_json
from embae.datasets.loading.image_spec import ImageSpec
from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.losses.parts import PARTS, PartName, Use
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.camera_tables import TABLES, add_tables
from embae.trainer.model.domain import Head, ModelDomain
from embae.trainer.model.embae import EmbAE, camera_table_shape
from embae.trainer.model.known_cameras import Camera, KnownCameras
from embae.trainer.model.manifest import FORMAT, META, WEIGHTS, check_weights, read_manifest
from embae.trainer.recipe.model import Model


@dataclass(frozen=True)
class SavedModel:
    """A model on disk.

    Attributes:
        path: Its folder.
        model: Sizes and backbone.
        parts: Its parts.
        spec: Image size and normalisation.
        domain: The heads, identities and cameras that it is built for.
    """

    path: Path
    model: Model
    parts: list[PartName]
    spec: ImageSpec
    domain: ModelDomain

    @property
    def heads(self) -> list[Head]:
        """The images that each nuisance head serves."""
        return list(self.domain.heads)

    @property
    def known_cameras(self) -> KnownCameras:
        """The cameras that it is calibrated on."""
        return self.domain.known_cameras

    @property
    def cameras(self) -> list[Camera]:
        """(dataset, camid) of the cameras that it is calibrated on."""
        return list(self.domain.known_cameras.cameras)

    @classmethod
    def open(cls, path: Path) -> SavedModel:
        """Reads ``model.json``.

        Raises:
            WeightsError: Missing, damaged or of another format.
        """
        manifest = read_manifest(path)
        parts = [part for part in PARTS if part in manifest.parts]
        spec = ImageSpec(*manifest.image, manifest.mean, manifest.std)
        return cls(path, manifest.model, parts, spec, manifest.domain)

    def state(self) -> dict[str, Tensor]:
        """The weights, by the model's names: exactly those that ``model.json`` describes.

        Raises:
            WeightsError: Missing, damaged or of another model, or timm does not know the backbone.
        """
        state, origin = read_weights(self.path / WEIGHTS), str(self.path / WEIGHTS)
        if len(self.heads) > len(state):
            raise WeightsError(f"{origin}: has {len(state)} tensors, too few for {len(self.heads)} nuisance heads")
        try:
            outline = _outline(self.model, tuple(self.parts), tuple(self.heads), self.domain.classes, len(self.cameras),
                               self.spec.size)
        except RecipeError as error:
            raise WeightsError(f"{self.path / META}: {error}") from error
        expected = dict(outline.state_dict())
        for key in state:
            if (shape := camera_table_shape(outline, key)) is not None:
                expected[key] = torch.empty(shape, device="meta")
        _compare(expected, state, origin)
        for key, value in state.items():
            if value.dtype != expected[key].dtype:
                raise WeightsError(f"{origin}: {key} is {value.dtype}, the model's {expected[key].dtype}")
        return state

    def restore(self, parts: Sequence[PartName] | None = None) -> EmbAE:
        """The model, or some of its parts, all frozen and in eval mode.

        Raises:
            WeightsError: The weights are missing, damaged or of another model, or timm does not know the backbone.
        """
        uses: dict[PartName, Use] = {part: "frozen" for part in parts or self.parts}
        state = {key: value for key, value in self.state().items() if key.split(".")[0] in uses}
        domain = self.domain if "classifier" in uses else replace(self.domain, classes=0)
        model = EmbAE(self.model, uses, domain, size=self.spec.size)
        load_into(model, state, str(self.path / WEIGHTS))
        return model.eval()


@lru_cache(maxsize=16)  # the stages of a run have few kinds of models, and timm takes 0.3 s to build one
def _outline(keys: Model, parts: tuple[PartName, ...], heads: tuple[Head, ...], classes: int, cameras: int,
             size: tuple[int, int]) -> EmbAE:
    """A model on the meta device: it takes no memory for any sizes that an untrusted ``model.json`` states."""
    uses: dict[PartName, Use] = {part: "frozen" for part in parts}
    with torch.device("meta"):
        known_cameras = KnownCameras([("", camid) for camid in range(cameras)])
        return EmbAE(keys, uses, ModelDomain(heads, classes, known_cameras), size=size)


def write(folder: Path, model: EmbAE, state: dict[str, Tensor], *, keys: Model, spec: ImageSpec) -> None:
    """Writes a model into a folder.

    Args:
        folder: An existing folder.
        model: The model, for its parts, heads, classes and cameras.
        state: Its weights and buffers, on the CPU.
        keys: Sizes and backbone.
        spec: Image size and normalisation.

    Raises:
        OSError: The file cannot be written, for instance because the disk is full.
    """
    cameras = model.cameras if any(key.rpartition(".")[2] in TABLES for key in state) else []
    save_weights(state, folder / WEIGHTS)
    description: dict[str, Any] = {
        "format": FORMAT, "model": keys.model_dump(mode="json"), "parts": list(model.parts()),
        "image": list(spec.size), "mean": list(spec.mean), "std": list(spec.std),
        "heads": [list(head) for head in model.heads], "cameras": [list(camera) for camera in cameras],
        "names": [model.known_cameras.names.get(camera) for camera in cameras if model.known_cameras.names],
        "classes": model.classes, "shapes": {key: list(value.shape) for key, value in state.items()},
    }
    write_json(folder / META, description)


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: The file cannot be written, for instance because the disk is full.
    """
    try:
        save_file({key: value.contiguous() for key, value in state.items()}, str(path))
    except (SafetensorError, OSError) as error:  # safetensors raises its own error for a full disk too
        raise OSError(f"{path}: cannot be written ({error})") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        WeightsError: Missing or damaged.
    """
    check_weights(path)
    try:
        return load_file(str(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error})") from error


def load_into(module: Any, state: dict[str, Tensor], origin: str) -> None:
    """Loads a whole state dict into a module, every tensor or none.

    Raises:
        WeightsError: Names or shapes differ; the message says which.
    """
    if add_tables(module, state):
        use_global_batch_norm(module, sync=False)
    _compare(module.state_dict(), state, origin)
    module.load_state_dict(state)


def _compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], origin: str) -> None:
    differences = [f"does not have {key}" for key in expected if key not in state]
    differences += [f"has {key}, which the model does not have" for key in state if key not in expected]
    differences += [f"{key} is {tuple(state[key].shape)}, the model's {tuple(value.shape)}"
                    for key, value in expected.items() if key in state and state[key].shape != value.shape]
    if differences:
        more = f"; and {len(differences) - 5} more" * (len(differences) > 5)
        raise WeightsError(f"{origin}: {'; '.join(differences[:5])}{more}")
