"""Compressed layers stand for torch.nn's: the same answers from the same weights, whatever the geometry."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2TextScaledWordEmbedding

from lissom.formats import (
    Affine,
    CompressedLayer,
    Dense,
    Frozen,
    Masked,
    Trainable,
    freeze,
    matrix_of,
    unfreeze,
    wrap,
)
from lissom.formats.linear import compressed_kind

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (2, 3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (6,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv1d reflecting": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), stride=2, dilation=(1, 2)), (2, 3, 9, 8)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 8, 3, groups=2, bias=False), (2, 4, 7, 7)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), (2, 4, 7, 7)),
    "conv2d same": (lambda: nn.Conv2d(3, 4, (4, 3), padding="same", dilation=2), (2, 3, 9, 9)),
    "conv2d circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 6, 6)),
    "conv2d one image": (lambda: nn.Conv2d(3, 4, 3), (3, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (1, 2, 4, 5, 3)),
}


def batch(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_wrapped_layer_computes_what_the_layer_does(name: str, trainable: bool) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), batch(shape)
    wrapped = wrap(layer, Dense(values=matrix_of(layer)), trainable=trainable)
    torch.testing.assert_close(wrapped(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_wrapped_embedding_looks_up_the_same_rows(trainable: bool) -> None:
    layer = nn.Embedding(10, 4, padding_idx=2)
    wrapped = wrap(layer, Dense(values=matrix_of(layer)), trainable=trainable)
    index = torch.tensor([[1, 2, 9], [0, 0, 5]])
    assert torch.equal(wrapped(index), layer(index))


@pytest.mark.parametrize("trainable", [False, True])
def test_a_wrapped_embedding_scales_its_rows_as_the_layer_does(trainable: bool) -> None:
    layer = Gemma2TextScaledWordEmbedding(10, 4, 2, embed_scale=3.0)
    wrapped = wrap(layer, Dense(values=matrix_of(layer)), trainable=trainable)
    again = wrap(wrapped, Dense(values=matrix_of(layer)))
    index = torch.tensor([[1, 2, 9], [0, 0, 5]])
    assert torch.equal(wrapped(index), layer(index))
    assert torch.equal(again(index), layer(index))


def test_embeddings_that_do_more_than_scaling_are_left_alone() -> None:
    layer: Any = Gemma2TextScaledWordEmbedding(10, 4, 2, embed_scale=3.0)
    assert compressed_kind(layer)
    layer.end = nn.Parameter(torch.zeros(4))
    assert not compressed_kind(layer)


def test_the_padding_entry_of_an_embedding_is_not_trained() -> None:
    wrapped = wrap(nn.Embedding(4, 3, padding_idx=1), Dense(values=torch.randn(4, 3)), trainable=True)
    wrapped(torch.tensor([0, 1])).sum().backward()
    (values,) = wrapped.parameters()
    assert values.grad is not None
    assert values.grad.sum(1).tolist() == [3, 0, 0, 0]


def test_a_wrapped_layer_keeps_the_attributes_the_mode_and_the_bias() -> None:
    layer: Any = nn.Conv2d(4, 6, 3, stride=2, groups=2).eval()
    wrapped: Any = wrap(layer, Dense(values=matrix_of(layer)))
    assert (wrapped.in_channels, wrapped.stride, wrapped.groups, wrapped.training) == (4, (2, 2), 2, False)
    assert wrapped.bias is not layer.bias
    assert torch.equal(wrapped.bias, layer.bias)
    assert "Conv2d 6x18, dense, 32.00 bits" in repr(wrapped)
    with pytest.raises(AttributeError, match="nothing"):
        _ = wrapped.nothing


def test_a_wrapped_layer_can_be_wrapped_again() -> None:
    layer, x = nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), batch((2, 4, 5, 5))
    once = wrap(layer, Dense(values=matrix_of(layer)), trainable=True)
    twice = wrap(once, Dense(values=matrix_of(layer) * 2))
    layer.weight.data *= 2
    torch.testing.assert_close(twice(x), layer(x), rtol=1e-5, atol=1e-6)
    assert twice.stands_for is nn.Conv2d


@pytest.mark.parametrize("bias", [True, False])
def test_in_mixed_precision_outputs_are_narrow_with_and_without_bias(bias: bool) -> None:
    layer, x = nn.Linear(6, 5, bias=bias), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = wrap(layer, Dense(values=matrix_of(layer)), trainable=True)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(x), rtol=0.03, atol=0.03)


def test_half_precision_stays_half() -> None:
    wrapped = wrap(nn.Linear(4, 3).bfloat16(), Dense(values=torch.randn(3, 4)))
    assert wrapped(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def quantized(o: int, i: int) -> Affine:
    codes = torch.randint(16, (o, i), dtype=torch.uint8)
    return Affine.of(codes, torch.full((o, 1), 0.25), None, 4, torch.rand(o, i) < 0.7)


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


def test_freezing_keeps_what_was_learned() -> None:
    layer, x = nn.Linear(12, 6), batch((8, 12))
    model: Any = nn.Sequential(wrap(layer, quantized(6, 12), trainable=True))
    before = model[0].weight.dense()
    trained(model, x)
    learned = model[0].weight.dense()
    assert not torch.equal(before, learned)
    freeze(model)
    assert isinstance(model[0].matrix, Frozen)
    assert torch.equal(model[0].weight.dense(), learned)
    unfreeze(model)
    assert isinstance(model[0].matrix, Trainable)
    assert torch.equal(model[0].weight.dense(), learned)
    freeze(model)
    assert torch.equal(model[0].weight.dense(), learned)


def test_tied_layers_stay_tied() -> None:
    model: Any = nn.ModuleDict({"embedding": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    weight = quantized(8, 4)
    for name, layer in list(model.items()):
        model[name] = wrap(layer, weight, trainable=True)
    model["head"].matrix = model["embedding"].matrix
    for change in (freeze, unfreeze, copy.deepcopy, freeze):
        model = change(model)
        assert model["head"].matrix is model["embedding"].matrix
    assert torch.equal(model["head"].weight.dense(), weight.dense())


@pytest.mark.parametrize("trainable", [False, True])
def test_a_deep_copy_is_a_layer_of_its_own(trainable: bool) -> None:
    layer, x = nn.Linear(12, 6), batch((8, 12))
    wrapped = wrap(layer, quantized(6, 12), trainable=trainable)
    twin = copy.deepcopy(wrapped)
    before = wrapped(x).detach()
    assert torch.equal(twin(x), before)
    for tensor in [*twin.parameters(), *twin.buffers()]:
        tensor.data.zero_()
    assert torch.equal(wrapped(x), before)


def test_a_frozen_layer_moves_its_weight_with_the_state_dict() -> None:
    one, other = (wrap(nn.Linear(12, 6), quantized(6, 12)) for _ in range(2))
    zeros = torch.zeros(6, 12, dtype=torch.uint8)
    other.matrix = Frozen(Affine.of(zeros, torch.ones(6, 1), None, 4, one.weight.kept()))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.weight.dense(), one.weight.dense())


def test_a_frozen_layer_has_no_parameters_but_its_bias() -> None:
    wrapped: CompressedLayer = wrap(nn.Linear(4, 3), Masked.of(torch.randn(3, 4), torch.rand(3, 4) < 0.5))
    assert [name for name, _ in wrapped.named_parameters()] == ["bias"]
    assert set(dict(wrapped.named_buffers())) == {"matrix.part_compressed", "matrix.part_bitmask"}
