"""Backbones: how wide their features are, how they are pooled, and weights of timm's that were made for others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from helpers.toy_models import images
from torch import Tensor

from embae.trainer.errors import RecipeError, WeightsError
from embae.trainer.model.backbone import GeM, build_backbone, fitted, width
from embae.trainer.model.batch_norm import use_global_batch_norm
from embae.trainer.model.saved import load_into
from embae.trainer.recipe.model import Model

SIZE = (64, 32)


def built(backbone: str, size: tuple[int, int] = SIZE, **keys: Any) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_backbone(Model(backbone=backbone, **keys), size)


@pytest.mark.parametrize("pooling", ["avg", "gem"])
@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "test_resnet", "test_byobnet", "test_convnext"])
def test_width_is_that_of_the_pooled_features(backbone: str, pooling: str) -> None:
    made = built(backbone, pooling=pooling).train()
    assert made(images(2, size=SIZE)).shape == (2, width(made, SIZE))
    assert made.training


@pytest.mark.parametrize(("keys", "wide"), [
    ({"backbone": "resnet50", "pooling": "gem", "last_stride": 1}, 2048),
    ({"backbone": "vit_small_patch16_224"}, 384),
])  # fmt: skip
def test_backbones_of_today_take_images_of_any_size(keys: dict[str, Any], wide: int) -> None:
    made = built(**keys).eval()
    assert width(made, SIZE) == wide
    use_global_batch_norm(made, sync=True)
    with torch.inference_mode():
        found = made(images(2, size=SIZE))
    assert found.shape == (2, wide) and found.isfinite().all()


def test_a_batch_through_a_transformer_draws_nothing() -> None:
    made = built("test_vit").train()
    before = torch.get_rng_state()
    assert torch.equal(made(images(2, size=SIZE)), made(images(2, size=SIZE)))
    assert torch.equal(torch.get_rng_state(), before)


def pooled(maps: Tensor, p: float) -> Tensor:
    """Radenović et al. 2018, eq. 3, a channel at a time."""
    return torch.tensor([[
        math.pow(sum(math.pow(max(value, 1e-6), p) for value in channel.flatten().tolist()) / channel.numel(), 1 / p)
        for channel in image] for image in maps], dtype=torch.float64)  # fmt: skip


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_gem_is_its_formula(p: float) -> None:
    maps = torch.randn(2, 3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pool = GeM(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(1))).double()
    assert torch.equal(pool.p, torch.tensor([3.0], dtype=torch.float64))
    torch.nn.init.constant_(pool.p, p)
    torch.testing.assert_close(pool(maps).detach(), pooled(maps, p))
    pool(maps).sum().backward()
    slope = (pooled(maps, p + 1e-6).sum() - pooled(maps, p - 1e-6).sum()) / 2e-6
    torch.testing.assert_close(pool.p.grad, slope[None], rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(pool, maps.abs().add(0.1).requires_grad_())


def test_gem_pools_in_single_precision_under_autocast() -> None:
    made = built("test_byobnet", pooling="gem")
    (pool,) = (module for module in made.modules() if isinstance(module, GeM))
    maps = images(2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(maps)
    assert found.dtype == torch.float32 and torch.equal(found, pool(maps.float()))


def test_a_last_stride_of_1_keeps_the_feature_map_large() -> None:
    coarse, fine = built("resnet18"), built("resnet18", last_stride=1)
    assert coarse.forward_features(images(1, size=SIZE)).shape == (1, 512, 2, 1)
    assert fine.forward_features(images(1, size=SIZE)).shape == (1, 512, 4, 2)
    fine.load_state_dict(coarse.state_dict())  # the weights are those of any
    fine(images(2, size=SIZE)).sum().backward()


@pytest.mark.parametrize(("keys", "said"), [
    ({"backbone": "mobilenetv9"}, r"model\.backbone: timm has no model 'mobilenetv9'"),
    ({"backbone": "test_byobnets"}, r"similar names: .*test_byobnet"),
    ({"backbone": "resnet50.no_such_tag"}, r"timm has no model 'resnet50\.no_such_tag'"),
    ({"backbone": "test_vit", "pooling": "gem"}, r"model\.pooling: gem .* test_vit does not take one; set it to avg"),
    ({"backbone": "test_resnet", "last_stride": 1}, r"model\.last_stride: 1 .* for test_resnet leave it at 2"),
    ({"backbone": "test_vit", "last_stride": 1}, r"model\.last_stride: 1 .* for test_vit leave it at 2"),
])  # fmt: skip
def test_what_cannot_be_built_is_named(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        built(**keys)


def test_a_size_that_a_backbone_cannot_take_is_named() -> None:
    with pytest.raises(RecipeError, match=r"model\.backbone: VisionTransformer only takes images of some sizes"):
        width(built("test_vit", (60, 32)), (60, 32))


def test_weights_for_other_images_are_resampled() -> None:
    whole = timm.create_model("test_vit", num_classes=10, img_size=64)  # as timm publishes it: a square, a classifier
    for block in whole.blocks:
        torch.nn.init.zeros_(block.mlp.fc2.weight)
    made = built("test_vit")
    load_into(made, fitted(whole.state_dict(), made), "here")
    grid = whole.pos_embed[:, -16:].reshape(1, 4, 4, -1)
    wanted = torch.nn.functional.interpolate(grid.permute(0, 3, 1, 2), (4, 2), mode="bicubic", antialias=True)
    torch.testing.assert_close(made.pos_embed[:, -8:], wanted.flatten(2).transpose(1, 2))
    assert torch.equal(made.pos_embed[:, :-8], whole.pos_embed[:, :-16])
    assert torch.equal(made.blocks[0].attn.qkv.weight, whole.blocks[0].attn.qkv.weight)
    same = built("test_vit")
    load_into(same, fitted(made.state_dict(), same), "here")  # of this size already
    assert torch.equal(same.pos_embed, made.pos_embed)


def test_position_embeddings_of_unknown_shape_are_named() -> None:
    made = built("test_vit")
    with pytest.raises(WeightsError, match=r"here: pos_embed is \(1, \d+, 64\), the model's \(1, \d+, 64\)"):
        load_into(made, fitted(built("test_vit", (48, 32)).state_dict(), made), "here")


def test_timms_weights_go_with_a_fresh_exponent() -> None:
    whole = timm.create_model("test_byobnet", num_classes=7)
    made = built("test_byobnet", pooling="gem")
    load_into(made, fitted(whole.state_dict(), made), "here")
    (pool,) = (module for module in made.modules() if isinstance(module, GeM))
    assert pool.p.tolist() == [3.0]
    torch.nn.init.constant_(pool.p, 2.5)
    again = built("test_byobnet", pooling="gem")
    load_into(again, fitted(made.state_dict(), again), "here")  # and with its own where it has one
    assert torch.equal(again.state_dict()["head.global_pool.p"], torch.tensor([2.5]))
