"""The model's parts: shapes, who serves whom, and what train() leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.toy_models import KEYS, NECK, heads, images, model, parts_in
from torch import nn

from embae.trainer.model.heads import NuisanceHeads, bnneck, head_labels, head_numbers

ALL = parts_in("train", "train", "train", "train")
STRONG = {**parts_in("train", "train"), "classifier": "train"}


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


def test_a_neck_is_a_batch_norm_without_a_bias() -> None:
    torch.manual_seed(0)
    neck, x = bnneck(5).double().train(), torch.randn(8, 5, dtype=torch.float64) * 3 + 2
    nn.init.uniform_(neck.weight, 0.5, 2)
    mean, variance = x.mean(0), (x - x.mean(0)).square().mean(0)
    torch.testing.assert_close(neck(x), neck.weight * (x - mean) / (variance + 1e-5).sqrt())
    torch.testing.assert_close(neck.running_var, 0.9 + 0.1 * variance * 8 / 7)
    assert [name for name, _ in neck.named_parameters()] == ["weight"]
    assert torch.equal(neck.state_dict()["bias"], torch.zeros(5, dtype=torch.float64))


def test_with_a_neck_z_is_as_wide_as_the_features_and_the_classifier_has_no_bias() -> None:
    made = model(STRONG, of=NECK, classes=400)
    assert made.z == made.features == 256 and [*made.classifier.state_dict()] == ["weight"]
    assert made.classifier.weight.std().item() == pytest.approx(0.001, rel=0.01)
    assert made.encode(images(4)).shape == (4, 256)
    assert model(STRONG, of=KEYS, classes=3).classifier.bias is not None


def test_only_what_leaves_the_model_has_length_1() -> None:
    made = model(STRONG, of=NECK, classes=3).eval()
    features = made.extract(images(3))
    z = made.embed(features)
    torch.testing.assert_close(z, made.embedding(features), rtol=0, atol=0)
    torch.testing.assert_close(made(images(3)), z / z.square().sum(1, keepdim=True).sqrt())
    assert (z.norm(dim=1) - 1).abs().min() > 0.01
    plain = model(STRONG, of=NECK.model_copy(update={"unit": False}), classes=3).eval()
    assert torch.equal(plain(images(3)), z)
