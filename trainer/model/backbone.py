"""The backbone F: a timm model without its classifier, and how its last feature map is pooled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import SelectAdaptivePool2d, resample_abs_pos_embed
from timm.models import ResNet, VisionTransformer, get_pretrained_cfg_value
from torch import Tensor, nn
from torch.func import functional_call

from embae.trainer.errors import RecipeError
from embae.trainer.recipe.mistakes import show_value
from embae.trainer.recipe.model import Model

EPS = 1e-6  # values of the feature map are clamped to this before pooling


class GeM(nn.Module):
    """Generalised mean pooling (Radenović et al. 2018, eq. 3): (mean of x^p)^(1/p) of each channel, p learnt.

    Args:
        mean: timm's average pooling, which knows the layout of the feature map and the shape of the output.
    """

    def __init__(self, mean: nn.Module):
        super().__init__()
        self.mean = mean
        # A vector of one number, because a checkpoint treats moments that are scalars as step counts.
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        # Autocast computes none of these operations in bfloat16.
        exact = x if x.dtype == torch.float64 else x.float()
        return self.mean(exact.clamp(min=EPS) ** self.p) ** (1 / self.p)


def build_backbone(keys: Model, size: tuple[int, int], pretrained: bool = False) -> nn.Module:
    """Builds a timm model without its classifier: `(B, 3, H, W)` to pooled features.

    Args:
        keys: Name of the backbone, its pooling and last stride.
        size: Height and width of the images, for which position embeddings are created.
        pretrained: Whether to load the hub's weights.

    Raises:
        RecipeError: timm has no such model, or not in this form.
    """
    name = keys.backbone
    # timm accepts hubs (hf-hub:…) and folders (local-dir:…) as names too; these are refused.
    if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII) or not timm.is_model(name):
        raise _unknown_model(name)
    try:
        sized: dict[str, Any] = {"img_size": size} if get_pretrained_cfg_value(name, "fixed_input_size") else {}
        backbone = timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
    except (AssertionError, TypeError) as error:
        raise _wrong_size(name, error) from error
    except RuntimeError as error:
        if "Invalid pretrained tag" not in str(error):
            raise
        raise _unknown_model(name) from None
    if keys.pooling == "gem":
        _pool_by_gem(backbone, name)
    if keys.last_stride == 1:
        _keep_resolution(backbone, name)
    return backbone


def _unknown_model(name: str) -> RecipeError:
    close = timm.list_models(f"*{name[:100].split('_')[0]}*")[:8]
    similar = f"; similar names: {', '.join(close)}" if close else ""
    return RecipeError(f"model.backbone: timm has no model {show_value(name)}{similar}")


def _wrong_size(name: str, error: Exception) -> RecipeError:
    return RecipeError(f"model.backbone: {name} only takes images of some sizes ({error})")


def _pool_by_gem(backbone: nn.Module, name: str) -> None:
    poolings = [(path, module) for path, module in backbone.named_modules() if isinstance(module, SelectAdaptivePool2d)]
    if len(poolings) != 1 or poolings[0][1].pool_type not in ("avg", "fast", "fastavg"):
        raise RecipeError(f"model.pooling: gem replaces the average over a feature map, and {name} does not take one; "
                          "set it to avg, or choose a convolutional backbone")
    path, mean = poolings[0]
    backbone.set_submodule(path, GeM(mean))


def strided_modules(backbone: nn.Module) -> dict[str, nn.Module]:
    """Modules of a ResNet's last stage that halve its feature map, by name; none for another backbone."""
    last: nn.Module = backbone.layer4 if isinstance(backbone, ResNet) else nn.Sequential()  # type: ignore[assignment]
    return {f"layer4.{path}": module for path, module in last.named_modules()
            if getattr(module, "stride", 1) in (2, (2, 2)) and not [*module.children()]}


def _keep_resolution(backbone: nn.Module, name: str) -> None:
    """Sets the strides of a ResNet's last stage to 1, which keeps the size of its feature map (Sun et al. 2018, §4)."""
    modules = list(strided_modules(backbone).values())
    if not modules or not all(isinstance(module, nn.Conv2d) for module in modules):
        raise RecipeError("model.last_stride: 1 is for timm's ResNets that downsample by convolutions alone, such as "
                          f"resnet50; for {name} leave it at 2")
    for module in modules:
        module.stride = (1, 1)  # type: ignore[assignment]


@torch.no_grad()
def width(backbone: nn.Module, size: tuple[int, int]) -> int:
    """Width of the pooled features, measured, since timm's `num_features` is wrong for some MobileNets.

    The measurement runs on the meta device and computes nothing, so a large model or image costs nothing.

    Args:
        backbone: The backbone.
        size: Height and width of its images.

    Raises:
        RecipeError: The backbone takes no images of this size, or does not pool its features.
    """
    training = backbone.training
    state = {name: value.to("meta") for name, value in (*backbone.named_parameters(), *backbone.named_buffers())}
    try:
        features = functional_call(backbone.eval(), state, torch.empty(1, 3, *size, device="meta"))
    except (AssertionError, RuntimeError) as error:  # timm raises either
        raise _wrong_size(type(backbone).__name__, error) from error
    if features.dim() != 2:
        raise RecipeError(f"model.backbone: {type(backbone).__name__} does not pool its features")
    backbone.train(training)
    return features.shape[1]


def fitted(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """A state dict with timm's names, changed to fit a backbone.

    A classifier is left out, position embeddings of a square grid are resampled to the grid of the backbone's images,
    and the exponent of `GeM`, which timm does not have, keeps its value in the backbone.
    """
    classifier = backbone.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr,operator]
    dropped = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    fitting = {key: value for key, value in state.items() if not key.startswith(dropped)}
    backbone_state = backbone.state_dict()
    for path, module in backbone.named_modules():
        if isinstance(module, GeM):
            fitting.setdefault(f"{path}.p", backbone_state[f"{path}.p"])
    positions = fitting.get("pos_embed")
    if isinstance(backbone, VisionTransformer) and positions is not None and positions.dim() == 3:
        expected, prefix = backbone_state["pos_embed"], 0 if backbone.no_embed_class else backbone.num_prefix_tokens
        grid = math.isqrt(max(positions.shape[1] - prefix, 0))
        if positions.shape[1] != expected.shape[1] and grid > 0 and grid**2 == positions.shape[1] - prefix:
            fitting["pos_embed"] = resample_abs_pos_embed(positions, list(backbone.patch_embed.grid_size), [grid, grid],
                                                          num_prefix_tokens=prefix)
    return fitting
