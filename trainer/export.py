"""What a stage leaves behind: every part's weights, and what is needed to use them.

    <stage>/export/model.safetensors    weights and buffers, by the model's own names
    <stage>/export/model.json           parts, sizes, image size, normalisation, whom each nuisance head serves, the
                                        cameras it is calibrated on

Weights travel as safetensors, which cannot run code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from embae.datasets.augment import ImageSpec
from embae.trainer.batchnorm import use_global_batch_norm
from embae.trainer.cameras import TABLES, Camera, make_room
from embae.trainer.errors import ExportError, RecipeError
from embae.trainer.parts import EmbAE, Head
from embae.trainer.schema import Model
from embae.trainer.stage_schema import PARTS, PartName, Use

FORMAT = 1
WEIGHTS, META = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Export:
    """A model on disk.

    Attributes:
        path: Its folder.
        model: Sizes and backbone.
        parts: The parts it has.
        spec: Image size and normalisation.
        heads: Whom each nuisance head serves.
        cameras: The cameras that it is calibrated on.
        classes: Identities that its classifier tells apart.
    """

    path: Path
    model: Model
    parts: list[PartName]
    spec: ImageSpec
    heads: list[Head]
    cameras: list[Camera]
    classes: int

    @classmethod
    def open(cls, path: Path) -> Export:
        """Reads ``model.json``.

        Raises:
            ExportError: Missing, damaged or of another format.
        """
        file = path / META
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ExportError(f"{path}: not an export, {META} is missing; wanted the folder <run>/<stage>/export") \
                from None
        except (OSError, ValueError, RecursionError) as error:
            raise ExportError(f"{file}: cannot be read ({error}); take the export from its run again") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ExportError(f"{file}: found format {found.get('format') if isinstance(found, dict) else None!r}, "
                              f"wanted {FORMAT}; it was written by another version of embae")
        try:
            parts = [part for part in PARTS if part in found["parts"]]
            (height, width), mean, std = found["image"], tuple(found["mean"]), tuple(found["std"])
            spec = ImageSpec(height, width, mean, std)
            heads = [tuple(head) for head in found["heads"]]
            cameras = [(str(dataset), int(camid)) for dataset, camid in found.get("cameras", [])]
            return cls(path, Model.model_validate(found["model"]), parts, spec, heads, cameras,
                       int(found.get("classes", 0)))
        except (KeyError, TypeError, ValueError) as error:
            raise ExportError(f"{file}: not the description of a model ({error}); "
                              "take the export from its run again") from error

    def state(self) -> dict[str, Tensor]:
        """The weights, by the model's names.

        Raises:
            ExportError: Missing or damaged.
        """
        return read_weights(self.path / WEIGHTS)

    def restore(self) -> EmbAE:
        """The model, every part frozen and in eval mode.

        Raises:
            ExportError: The weights are missing or damaged, or timm does not know the backbone.
        """
        uses: dict[PartName, Use] = {part: "frozen" if part in self.parts else "absent" for part in PARTS}
        try:
            model = EmbAE(self.model, self.heads, uses, classes=self.classes, cameras=self.cameras)
        except RecipeError as error:
            raise ExportError(f"{self.path / META}: {error}") from error
        load_into(model, self.state(), str(self.path / WEIGHTS))
        return model.eval()


def write(folder: Path, model: EmbAE, state: dict[str, Tensor], *, keys: Model, spec: ImageSpec) -> None:
    """Writes a model into a folder.

    Args:
        folder: Is there.
        model: Says which parts it has, whom its heads serve, and so on.
        state: Its weights and buffers, on the CPU.
        keys: Sizes and backbone.
        spec: Image size and normalisation.
    """
    tables = any(key.rpartition(".")[2] in TABLES for key in state)
    save_file({key: value.contiguous() for key, value in state.items()}, str(folder / WEIGHTS))
    description: dict[str, Any] = {
        "format": FORMAT, "model": keys.model_dump(mode="json"), "parts": list(model.parts()),
        "image": list(spec.size), "mean": list(spec.mean), "std": list(spec.std),
        "heads": [list(head) for head in model.heads], "cameras": [list(one) for one in model.cameras if tables],
        "classes": model.classes, "shapes": {key: list(value.shape) for key, value in state.items()},
    }
    (folder / META).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        ExportError: Missing or damaged.
    """
    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise ExportError(f"{path}: not a whole safetensors file ({error})") from error


def load_into(module: Any, state: dict[str, Tensor], origin: str) -> None:
    """Loads a whole state dict, every tensor or none.

    Raises:
        ExportError: Names or shapes differ; says which.
    """
    if make_room(module, state):
        use_global_batch_norm(module, sync=False)
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = [f"lacks {key}" for key in wanted if key not in found]
    wrong += [f"has {key}, which the model lacks" for key in found if key not in wanted]
    wrong += [f"{key} is {found[key]}, the model's {shape}" for key, shape in wanted.items()
              if found.get(key, shape) != shape]
    if wrong:
        raise ExportError(f"{origin}: {'; '.join(wrong[:5])}{f'; and {len(wrong) - 5} more' * (len(wrong) > 5)}")
    module.load_state_dict(state)
