"""The model's parts: shapes, who serves whom, and what train() leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toys import heads, images, model, parts_in

from embae.trainer.errors import RecipeError
from embae.trainer.parts import NuisanceHeads, build_backbone, head_labels, head_numbers, width

ALL = parts_in("train", "train", "train", "train")


def test_heads_serve_their_own_images_in_their_order() -> None:
    torch.manual_seed(0)
    part = NuisanceHeads(7, 5, 3, heads(4)).double().eval()
    features, which = torch.randn(9, 7, dtype=torch.float64), np.array([2, 0, 2, 3, 0, 0, 2, 3, 2])
    found = part(features, which, [0, 2, 3])
    for row, number in enumerate(which.tolist()):
        torch.testing.assert_close(found[row], part.heads[number](features[row : row + 1])[0], rtol=1e-12, atol=1e-12)


def test_a_rank_without_images_of_a_present_head_walks_through_it_all_the_same() -> None:
    part = NuisanceHeads(7, 5, 3, heads(4)).eval()
    calls: list[tuple[int, int]] = []
    for number, one in enumerate(part.heads):
        one.register_forward_hook(lambda _, args, __, number=number: calls.append((number, len(args[0]))))
    assert part(torch.randn(2, 7), np.array([3, 3]), [0, 2, 3]).shape == (2, 3)
    assert part(torch.randn(0, 7), np.array([], dtype=np.int64), [0, 2]).shape == (0, 3)
    assert calls == [(0, 0), (2, 0), (3, 2), (0, 0), (2, 0)]


@pytest.mark.parametrize(
    ("per", "wanted"),
    [
        ("shared", [()]),
        ("dataset", [("a",), ("b",)]),
        ("camera", [("a", 1), ("a", 2), ("b", 1)]),
    ],
)
def test_labels_and_numbers(per: str, wanted: list[tuple[str, int]]) -> None:
    labels = head_labels(per, [("a", 1), ("a", 2), ("b", 1)])  # type: ignore[arg-type]
    assert labels == wanted
    dataset, camid = np.array([1, 0, 0, 1]), np.array([1, 2, 1, 1])
    owners = [(["a", "b"][d], c)[: len(wanted[0])] for d, c in zip(dataset, camid, strict=True)]
    found = head_numbers(labels, ["a", "b"], dataset, camid)
    assert [labels[number] for number in found] == owners
    assert head_numbers(labels[::-1], ["a", "b"], dataset, camid).tolist() == [
        labels[::-1].index(owner) for owner in owners
    ]


def test_a_head_of_another_dataset_is_not_taken_for_one_of_this() -> None:
    with pytest.raises(KeyError):
        head_numbers([("a", 1)], ["b"], np.array([0]), np.array([1]))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "test_resnet"])
def test_width_is_that_of_the_pooled_features(backbone: str) -> None:
    made = build_backbone(backbone).train()
    assert made(images(2)).shape == (2, width(made))
    assert made.training


def test_an_unknown_backbone_is_named_with_what_is_near() -> None:
    with pytest.raises(RecipeError, match=r"no model 'mobilenetv9'"):
        build_backbone("mobilenetv9")
    with pytest.raises(RecipeError, match=r"near: .*test_byobnet"):
        build_backbone("test_byobnets")


def test_parts_that_are_absent_are_not_built() -> None:
    made = model(parts_in("train", "train"))
    assert list(made.parts()) == ["backbone", "embedding"]
    assert {name.split(".")[0] for name in made.state_dict()} == {"backbone", "embedding"}
    assert made.eval()(images(2)).shape == (2, 8)


def test_train_leaves_frozen_parts_in_eval_mode() -> None:
    made = model(parts_in("frozen", "train", "frozen", "train"), heads(2))
    nn.Sequential(made).train()  # as an engine does
    for name, part in made.parts().items():
        trains = name in ("embedding", "decoder")
        assert {module.training for module in part.modules()} == {trains}, name
        assert {weight.requires_grad for weight in part.parameters()} == {trains}, name
    made.eval()
    assert not any(module.training for module in made.modules())


def test_a_trained_part_may_keep_to_its_running_statistics() -> None:
    made = model(ALL, heads(2), running=["embedding"]).train()
    assert not made.embedding[2].training and made.embedding[0].training
    assert made.nuisance.heads[0][2].training
    assert all(weight.requires_grad for weight in made.embedding.parameters())
