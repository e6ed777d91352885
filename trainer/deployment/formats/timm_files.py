"""The files of a model for timm, and how they are read back.

    model.safetensors       the backbone, by timm's names
    config.json             timm's description of it; under ``embae`` the contract, with `beyond`
    head.safetensors        the embedding head, if there is one
    cameras.safetensors     statistics by camera, if there are any

`beyond` is a tree that says how a backbone of timm's gives the embeddings: which convolutions keep the size of the
feature map, how the map is pooled, what follows. The model card shows it as code (`timm.py`); `read_with_timm` does the
same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor, nn

from embae.datasets.files.json_files import read_json, write_json
from embae.trainer.deployment.deployed_model import Deployed
from embae.trainer.model.backbone import EPS, GeM, strided_modules
from embae.trainer.model.camera_tables import TABLES
from embae.trainer.model.heads import head
from embae.trainer.model.saved import SavedModel, save_weights


def beyond(export: SavedModel, deployed: Deployed) -> dict[str, Any]:
    """What a model has that timm's own backbone does not have, JSON-ready.

    Returns:
        ``stride_1``: modules of the backbone that have this stride instead of timm's; ``gem``: where generalised mean
        pooling replaces the average, its exponent p and the least value, or null; ``head``: ``mlp``, ``bnneck`` or
        null; ``unit``: whether embeddings have length 1.
    """
    backbone, keys = deployed.model.backbone, export.model
    pools = [{"module": path, "p": float(module.p), "eps": EPS} for path, module in backbone.named_modules()
             if isinstance(module, GeM)]
    return {"stride_1": list(strided_modules(_plain(export, deployed))) if keys.last_stride == 1 else [],
            "gem": pools[0] if pools else None,
            "head": keys.head if "embedding" in export.parts else None, "unit": keys.unit}


def _plain(export: SavedModel, deployed: Deployed) -> nn.Module:
    """timm's own backbone of this name and size of images."""
    sized: dict[str, Any] = {"img_size": export.spec.size} if hasattr(deployed.model.backbone, "patch_embed") else {}
    return timm.create_model(export.model.backbone, num_classes=0, **sized)


def write_for_timm(folder: Path, export: SavedModel, deployed: Deployed, about: dict[str, Any]) -> None:
    """Writes the files.

    Args:
        folder: An existing folder.
        export: The model on disk.
        deployed: The same model as it is used.
        about: What goes into ``config.json`` under ``embae``; it contains `beyond`, under this name.
    """
    state = deployed.model.state_dict()
    tables = {key: value for key, value in state.items() if key.rpartition(".")[2] in TABLES}
    if tables:
        save_weights(tables, folder / "cameras.safetensors")
    weights = {part: {key.partition(".")[2]: value for key, value in state.items()
                    if key.startswith(f"{part}.") and key not in tables} for part in ("backbone", "embedding")}
    if weights["embedding"]:
        save_weights(weights["embedding"], folder / "head.safetensors")
    if gem := about["beyond"]["gem"]:
        del weights["backbone"][f"{gem['module']}.p"]
    backbone = _plain(export, deployed)
    backbone.load_state_dict(weights["backbone"])
    data_config = {"input_size": (3, *export.spec.size), "mean": export.spec.mean, "std": export.spec.std,
                   "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    save_for_hf(backbone, str(folder), model_config={"embae": about}, safe_serialization=True, data_config=data_config)
    config = read_json(folder / "config.json")
    for key in ("tag", "license", "paper_ids", "origin_url"):  # of the weights that timm ships, not of these
        config["pretrained_cfg"].pop(key, None)
    write_json(folder / "config.json", config, indent=2)


def read_with_timm(folder: Path) -> Callable[..., Tensor]:
    """The code of the model card as a function: images from 0 to 1, not normalised, to embeddings."""
    config = read_json(folder / "config.json")
    beyond_timm, norm = config["embae"]["beyond"], config["pretrained_cfg"]
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    for name in beyond_timm["stride_1"]:
        backbone.get_submodule(name).stride = (1, 1)  # type: ignore[assignment]
    if gem := beyond_timm["gem"]:
        pool, p, eps = backbone.get_submodule(gem["module"]), gem["p"], gem["eps"]
        pool.register_forward_pre_hook(lambda _, inputs: (inputs[0].clamp(min=eps) ** p,))
        pool.register_forward_hook(lambda *call: call[2] ** (1 / p))
    top: nn.Module = nn.Identity()
    if beyond_timm["head"]:
        weights = load_file(folder / "head.safetensors")
        if beyond_timm["head"] == "bnneck":
            top = nn.BatchNorm1d(len(weights["weight"]))
        else:
            hidden, features = weights["0.weight"].shape
            top = head(features, hidden, len(weights["3.weight"]))
        top.load_state_dict(weights)
    top.eval()
    mean, std = (torch.tensor(norm[name]).view(3, 1, 1) for name in ("mean", "std"))

    def run(images: Tensor, camera: Tensor | None = None) -> Tensor:
        embeddings = top(backbone((images - mean) / std))
        return F.normalize(embeddings, dim=1) if beyond_timm["unit"] else embeddings

    return run
