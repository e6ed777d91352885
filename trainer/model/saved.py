"""What a stage leaves behind: every part's weights, and what is needed to use them.

    <stage>/export/model.safetensors    weights and buffers, by the model's own names
    <stage>/export/model.json           parts, sizes, image size, normalisation, whom each nuisance head serves, the
                                        cameras it is calibrated on, and what these are called

Weights travel as safetensors, which cannot run code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from embae.datasets.files.json_files import write_json
from embae.datasets.loading.augment import ImageSpec
from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.losses.parts import PARTS, PartName, Use
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.camera_tables import TABLES, make_room
from embae.trainer.model.embae import EmbAE, table_shape
from embae.trainer.model.heads import Head
from embae.trainer.model.known_cameras import Camera, KnownCameras
from embae.trainer.model.manifest import FORMAT, META, WEIGHTS, check_weights, read_description
from embae.trainer.recipe.model import Model


@dataclass(frozen=True)
class SavedModel:
    """A model on disk.

    Attributes:
        path: Its folder.
        model: Sizes and backbone.
        parts: The parts it has.
        spec: Image size and normalisation.
        heads: Whom each nuisance head serves.
        known: The cameras that it is calibrated on.
        classes: Identities that its classifier tells apart.
    """

    path: Path
    model: Model
    parts: list[PartName]
    spec: ImageSpec
    heads: list[Head]
    known: KnownCameras
    classes: int

    @property
    def cameras(self) -> list[Camera]:
        """(dataset, camid) of the cameras that it is calibrated on."""
        return list(self.known.cameras)

    @classmethod
    def open(cls, path: Path) -> SavedModel:
        """Reads ``model.json``.

        Raises:
            ExportError: Missing, damaged or of another format.
        """
        found = read_description(path)
        parts = [part for part in PARTS if part in found.parts]
        return cls(path, found.model, parts, ImageSpec(*found.image, found.mean, found.std), list(found.heads),
                   found.known, found.classes)

    def state(self) -> dict[str, Tensor]:
        """The weights, by the model's names: those that ``model.json`` describes, none more, none less.

        Raises:
            ExportError: Missing, damaged or of another model, or timm does not know the backbone.
        """
        state, origin = read_weights(self.path / WEIGHTS), str(self.path / WEIGHTS)
        if len(self.heads) > len(state):
            raise WeightsError(f"{origin}: has {len(state)} tensors, too few for {len(self.heads)} nuisance heads")
        try:
            outline = _outline(self.model, tuple(self.parts), tuple(self.heads), self.classes, len(self.known.cameras),
                               self.spec.size)
        except RecipeError as error:
            raise WeightsError(f"{self.path / META}: {error}") from error
        wanted = dict(outline.state_dict())
        for key in state:
            if (shape := table_shape(outline, key)) is not None:
                wanted[key] = torch.empty(shape, device="meta")
        _compare(wanted, state, origin)
        for key, value in state.items():
            if value.dtype != wanted[key].dtype:
                raise WeightsError(f"{origin}: {key} is {value.dtype}, the model's {wanted[key].dtype}")
        return state

    def restore(self, parts: Sequence[PartName] | None = None) -> EmbAE:
        """The model, or some of its parts, all frozen and in eval mode.

        Raises:
            ExportError: The weights are missing, damaged or of another model, or timm does not know the backbone.
        """
        uses: dict[PartName, Use] = {part: "frozen" for part in parts or self.parts}
        state = {key: value for key, value in self.state().items() if key.split(".")[0] in uses}
        classes = self.classes if "classifier" in uses else 0
        model = EmbAE(self.model, self.heads, uses, classes=classes, known=self.known, size=self.spec.size)
        load_into(model, state, str(self.path / WEIGHTS))
        return model.eval()


@lru_cache(maxsize=16)  # the stages of a run have few kinds of models, and timm takes 0.3 s to lay one out
def _outline(keys: Model, parts: tuple[PartName, ...], heads: tuple[Head, ...], classes: int, cameras: int,
             size: tuple[int, int]) -> EmbAE:
    """A model that takes no memory, whatever size a stranger says that it has."""
    uses: dict[PartName, Use] = {part: "frozen" for part in parts}
    with torch.device("meta"):
        known = KnownCameras([("", camid) for camid in range(cameras)])
        return EmbAE(keys, heads, uses, classes=classes, known=known, size=size)


def write(folder: Path, model: EmbAE, state: dict[str, Tensor], *, keys: Model, spec: ImageSpec) -> None:
    """Writes a model into a folder.

    Args:
        folder: Is there.
        model: Says which parts it has, whom its heads serve, and so on.
        state: Its weights and buffers, on the CPU.
        keys: Sizes and backbone.
        spec: Image size and normalisation.

    Raises:
        OSError: The disk is full, for one.
    """
    cameras = model.cameras if any(key.rpartition(".")[2] in TABLES for key in state) else []
    save_weights(state, folder / WEIGHTS)
    description: dict[str, Any] = {
        "format": FORMAT, "model": keys.model_dump(mode="json"), "parts": list(model.parts()),
        "image": list(spec.size), "mean": list(spec.mean), "std": list(spec.std),
        "heads": [list(head) for head in model.heads], "cameras": [list(one) for one in cameras],
        "names": [model.known.names.get(one) for one in cameras if model.known.names],
        "classes": model.classes, "shapes": {key: list(value.shape) for key, value in state.items()},
    }
    write_json(folder / META, description)


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        OSError: The disk is full, for one.
    """
    try:
        save_file({key: value.contiguous() for key, value in state.items()}, str(path))
    except (SafetensorError, OSError) as error:  # safetensors' own stands for a full disk too
        raise OSError(f"{path}: cannot be written ({error})") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        ExportError: Missing or damaged.
    """
    check_weights(path)
    try:
        return load_file(str(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error})") from error


def load_into(module: Any, state: dict[str, Tensor], origin: str) -> None:
    """Loads a whole state dict, every tensor or none.

    Raises:
        ExportError: Names or shapes differ; says which.
    """
    if make_room(module, state):
        use_global_batch_norm(module, sync=False)
    _compare(module.state_dict(), state, origin)
    module.load_state_dict(state)


def _compare(own: Mapping[str, Tensor], state: Mapping[str, Tensor], origin: str) -> None:
    wanted = {key: tuple(value.shape) for key, value in own.items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = [f"lacks {key}" for key in wanted if key not in found]
    wrong += [f"has {key}, which the model lacks" for key in found if key not in wanted]
    wrong += [f"{key} is {found[key]}, the model's {shape}" for key, shape in wanted.items()
              if found.get(key, shape) != shape]
    if wrong:
        raise WeightsError(f"{origin}: {'; '.join(wrong[:5])}{f'; and {len(wrong) - 5} more' * (len(wrong) > 5)}")
