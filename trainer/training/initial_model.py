"""A stage's model at its first step: newly drawn parts, and parts from where ``init`` points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from embae.datasets.sampling.keyed_random import generator
from embae.datasets.sampling.view import View
from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.model.backbone import build_backbone, fitted
from embae.trainer.model.camera_tables import extend_tables, without_tables
from embae.trainer.model.domain import Head, ModelDomain
from embae.trainer.model.embae import EmbAE
from embae.trainer.model.heads import head_labels
from embae.trainer.model.known_cameras import KnownCameras
from embae.trainer.model.manifest import named
from embae.trainer.model.saved import SavedModel, load_into, read_weights
from embae.trainer.recipe.model import Model
from embae.trainer.recipe.stage import Stage


@dataclass(frozen=True)
class StageStart:
    """What a stage's initial model depends on besides the keys of the recipe.

    Attributes:
        name: Name of the stage.
        seed: The run's seed.
        run: The run folder, where earlier stages' exports are.
        view: The stage's images.
        classes: Identities of the stage's images, for the classifier.
        size: Height and width of its images.
    """

    name: str
    seed: int
    run: Path
    view: View
    classes: int = 0
    size: tuple[int, int] = (256, 128)


def initial_model(keys: Model, stage: Stage, start: StageStart) -> EmbAE:
    """Builds a stage's model.

    Parts that ``init`` has are taken from it unless ``reinit`` names them; the others are drawn from (seed,
    stage) without touching the global generator. Parts whose batch norms train by camera get statistics of the cameras
    that ``init`` knows from there, and of the stage's other ones the shared statistics.

    Args:
        keys: Sizes and backbone.
        stage: The stage.
        start: What else it depends on.

    Raises:
        WeightsError: What ``init`` points at is missing, damaged or does not fit; the message starts with the key.
    """
    key, size = f"stages.{start.name}.init", start.size
    with named(key):
        export = _export(stage.init, start.run)
    heads: list[Head] = []
    if stage.use("nuisance") != "absent":
        heads = head_labels(keys.nuisance.per, start.view.cameras())
        if export and "nuisance" in export.parts and "nuisance" not in stage.reinit:
            missing = [head for head in heads if head not in export.heads]
            if missing and stage.loss:  # else they are carried along
                raise WeightsError(f"{key}: {stage.init} has no nuisance head for {', '.join(map(str, missing[:5]))}; "
                                  "draw new heads with reinit: [nuisance]")
            heads = export.heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(start.seed, start.name, "weights").integers(2**63)))
        running, by_camera = stage.normalised("running"), stage.normalised("camera")
        cameras = export.known_cameras if export else KnownCameras()
        if by_camera:
            cameras = cameras.extended_by(start.view)  # rows of tables stay where they are
        model = EmbAE(keys, stage.parts, ModelDomain(heads, start.classes, cameras), running=running, size=size)
    for part in stage.reinit:
        if export and part not in export.parts:
            raise WeightsError(f"stages.{start.name}.reinit: {stage.init} has no {part}, so it is drawn anyway; "
                              "leave it out")
    with named(key):
        if export:
            state = export.state()
            for part, module in model.parts().items():
                if part in export.parts and part not in stage.reinit:
                    tensors = {k.removeprefix(part + "."): v for k, v in state.items() if k.startswith(part + ".")}
                    if stage.use(part) == "train":
                        tensors = without_tables(tensors, keep_batch_norm=part in (*running, *by_camera))
                    load_into(module, tensors, f"{stage.init}, part {part}")
        elif stage.init == "hub":
            model.backbone.load_state_dict(_from_hub(keys, size).state_dict())
        elif stage.init != "random":
            load_into(model.backbone, fitted(_backbone_file(Path(stage.init)), model.backbone), stage.init)
    for part, module in model.parts().items():
        extend_tables(module, len(cameras.cameras), trains=part in by_camera)
    return model


def _export(init: str, run: Path) -> SavedModel | None:
    """The export that ``init`` points at: of a stage of this run, or any folder."""
    if init in ("hub", "random"):
        return None
    for folder in (run / init / "export", Path(init), Path(init) / "export"):
        if (folder / "model.json").is_file():
            return SavedModel.open(folder)
    if Path(init).is_dir():
        raise WeightsError(f"{init}: a folder without an export in it; expected <run>/<stage>/export")
    return None


def _backbone_file(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return read_weights(path)
    if not path.is_file():
        raise WeightsError(f"{path}: {'not a plain' if path.exists() else 'no such'} file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a stranger's file
        raise WeightsError(f"{path}: cannot be read as weights alone ({type(error).__name__}); "
                          "convert it to .safetensors") from error
    if not isinstance(state, dict) or not all(map(_is_plain, state.items())):
        raise WeightsError(f"{path}: holds more than named tensors; save the backbone's state dict alone")
    return state


def _is_plain(item: tuple[object, object]) -> bool:
    key, value = item
    return (isinstance(key, str) and isinstance(value, torch.Tensor) and value.device.type == "cpu"
            and value.layout == torch.strided and not value.is_quantized)


def _from_hub(keys: Model, size: tuple[int, int]) -> torch.nn.Module:
    try:
        return build_backbone(keys, size, pretrained=True)
    except RecipeError:
        raise
    except Exception as error:  # the hub's client raises what its transport raises
        raise WeightsError(f"the hub's weights of {keys.backbone} could not be fetched ({type(error).__name__}). "
                          "Where there is no internet, put init: PATH to a .safetensors file with timm's names, "
                          "or init: random.") from error
