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

EPS = 1e-6  # below it a value of the feature map has no part in the pooled one


class GeM(nn.Module):
    """Generalised mean pooling (Radenović et al. 2018, eq. 3): (mean of x^p)^(1/p) of each channel, p learnt.

    Args:
        mean: timm's average pooling, which knows the layout of the feature map and what is wanted of it.
    """

    def __init__(self, mean: nn.Module):
        super().__init__()
        self.mean = mean
        # One number, and no scalar: a checkpoint takes moments that are scalars for counts of steps.
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        # None of these is what autocast computes in bfloat16.
        exact = x if x.dtype == torch.float64 else x.float()
        return self.mean(exact.clamp(min=EPS) ** self.p) ** (1 / self.p)


def build_backbone(keys: Model, size: tuple[int, int], pretrained: bool = False) -> nn.Module:
    """A timm model without its classifier: `(B, 3, H, W)` to pooled features.

    Args:
        keys: Its name, pooling and last stride.
        size: Height and width of the images, which position embeddings are made for.
        pretrained: Whether with the hub's weights.

    Raises:
        RecipeError: timm has no such model, or not in this form.
    """
    name = keys.backbone
    # Not what timm also takes for a name: hubs (hf-hub:…) and folders (local-dir:…).
    if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII) or not timm.is_model(name):
        raise _unknown(name)
    try:
        sized: dict[str, Any] = {"img_size": size} if get_pretrained_cfg_value(name, "fixed_input_size") else {}
        backbone = timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
    except (AssertionError, TypeError) as error:
        raise _sizes(name, error) from error
    except RuntimeError as error:
        if "Invalid pretrained tag" not in str(error):
            raise
        raise _unknown(name) from None
    if keys.pooling == "gem":
        _pool_by_gem(backbone, name)
    if keys.last_stride == 1:
        _keep_resolution(backbone, name)
    return backbone


def _unknown(name: str) -> RecipeError:
    close = timm.list_models(f"*{name[:100].split('_')[0]}*")[:8]
    near = f"; near: {', '.join(close)}" if close else ""
    return RecipeError(f"model.backbone: timm has no model {show_value(name)}{near}")


def _sizes(name: str, error: Exception) -> RecipeError:
    return RecipeError(f"model.backbone: {name} takes images of some sizes only ({error})")


def _pool_by_gem(backbone: nn.Module, name: str) -> None:
    found = [(path, module) for path, module in backbone.named_modules() if isinstance(module, SelectAdaptivePool2d)]
    if len(found) != 1 or found[0][1].pool_type not in ("avg", "fast", "fastavg"):
        raise RecipeError(f"model.pooling: gem stands in for the average over a feature map, and {name} takes none; "
                          "set it to avg, or take a convolutional backbone")
    backbone.set_submodule(found[0][0], GeM(found[0][1]))


def strided(backbone: nn.Module) -> dict[str, nn.Module]:
    """Modules of a ResNet's last stage that make its feature map smaller, by name; none for another backbone."""
    last: nn.Module = backbone.layer4 if isinstance(backbone, ResNet) else nn.Sequential()  # type: ignore[assignment]
    return {f"layer4.{path}": module for path, module in last.named_modules()
            if getattr(module, "stride", 1) in (2, (2, 2)) and not [*module.children()]}


def _keep_resolution(backbone: nn.Module, name: str) -> None:
    """Lets the last stage of a ResNet keep the size of its feature map (Sun et al. 2018, §4)."""
    found = list(strided(backbone).values())
    if not found or not all(isinstance(module, nn.Conv2d) for module in found):
        raise RecipeError("model.last_stride: 1 is for timm's ResNets that go down by convolutions alone, such as "
                          f"resnet50; for {name} leave it at 2")
    for module in found:
        module.stride = (1, 1)  # type: ignore[assignment]


@torch.no_grad()
def width(backbone: nn.Module, size: tuple[int, int]) -> int:
    """Width of the pooled features; measured, since for some MobileNets timm's `num_features` is not it.

    Nothing is computed for that, so that neither a large model nor a large image costs anything.

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
    except (AssertionError, RuntimeError) as error:  # timm's ways to say so
        raise _sizes(type(backbone).__name__, error) from error
    if features.dim() != 2:
        raise RecipeError(f"model.backbone: {type(backbone).__name__} does not pool its features")
    backbone.train(training)
    return features.shape[1]


def fitted(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """A state dict by timm's names as a backbone takes it.

    A classifier is left out, position embeddings of a square grid are resampled to the grid of the backbone's images,
    and the exponent of `GeM`, of which timm knows nothing, stays as it is.
    """
    classifier = backbone.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr,operator]
    dropped = tuple(f"{one}." for one in ([classifier] if isinstance(classifier, str) else classifier))
    found = {key: value for key, value in state.items() if not key.startswith(dropped)}
    own = backbone.state_dict()
    for path, module in backbone.named_modules():
        if isinstance(module, GeM):
            found.setdefault(f"{path}.p", own[f"{path}.p"])
    given = found.get("pos_embed")
    if isinstance(backbone, VisionTransformer) and given is not None and given.dim() == 3:
        wanted, prefix = own["pos_embed"], 0 if backbone.no_embed_class else backbone.num_prefix_tokens
        grid = math.isqrt(max(given.shape[1] - prefix, 0))
        if given.shape[1] != wanted.shape[1] and grid > 0 and grid**2 == given.shape[1] - prefix:
            found["pos_embed"] = resample_abs_pos_embed(given, list(backbone.patch_embed.grid_size), [grid, grid],
                                                        num_prefix_tokens=prefix)
    return found
