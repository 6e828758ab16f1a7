"""A module as names of layers and arguments, as JSON holds it."""

import json

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact.architecture import construct, describe
from lissom.compress import quantize_model
from lissom.errors import ArtifactError

LAYERS = [
    nn.Linear(3, 4, bias=False),
    nn.Conv2d(4, 8, (3, 1), stride=2, padding=(1, 0), dilation=2, groups=2, padding_mode="reflect"),
    nn.ConvTranspose2d(4, 2, 3, output_padding=1, stride=2),
    nn.Embedding(7, 3, padding_idx=1),
    nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False),
    nn.BatchNorm1d(4, track_running_stats=False),
    nn.LayerNorm((4, 2), bias=False),
    nn.RMSNorm(4, eps=1e-6),
    nn.GroupNorm(2, 4),
    nn.PReLU(3),
    nn.Hardtanh(-2.0, 2.0),
    nn.Dropout(0.25),
    nn.AdaptiveAvgPool2d((None, 2)),
    nn.Unflatten(1, (2, 2)),
    nn.Upsample(scale_factor=2.0, mode="nearest"),
    nn.Softmax(dim=-1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_layer_is_made_again_from_its_description(layer: nn.Module) -> None:
    description = describe(layer)
    assert description is not None
    again = construct(json.loads(json.dumps(description)))
    assert type(again) is type(layer)
    assert repr(again) == repr(layer)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in layer.state_dict().items()}


class Own(nn.Linear):
    """Not torch.nn's."""


@pytest.mark.parametrize(
    "module",
    [
        Own(2, 2),
        nn.Sequential(nn.ReLU(), Own(2, 2)),
        nn.MultiheadAttention(4, 2),
        nn.LSTM(3, 4),
        nn.ModuleList([nn.Linear(2, 2)]),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_its_arguments_do_not_tell_is_not_described(module: nn.Module) -> None:
    assert describe(module) is None


def test_a_compressed_layer_is_described_as_the_layer_it_stands_for() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding="same"), nn.Embedding(4, 3), nn.Linear(2, 2, bias=False))
    assert describe(quantize_model(model)) == describe(model)


def test_a_module_in_several_places_is_one_again() -> None:
    shared, twice = nn.Linear(3, 3), nn.ReLU()
    model = nn.Sequential(shared, twice, nn.Sequential(nn.Linear(3, 3), twice), shared)
    again = construct(json.loads(json.dumps(describe(model))))
    assert again[3] is again[0]  # type: ignore[index]
    assert again[2][1] is again[1]  # type: ignore[index]
    assert again[2][0] is not again[0]  # type: ignore[index]
    assert repr(again) == repr(model)


@pytest.mark.parametrize("name", ["Module ", "functional", "init", "__import__", None])
def test_only_layers_of_torch_are_made(name: str | None) -> None:
    with pytest.raises(ArtifactError, match=r"is no layer of torch\.nn"):
        construct({"layer": name, "arguments": {}})


def test_an_order_of_children_is_kept() -> None:
    model = nn.Sequential()
    for name in ("late", "early"):
        model.add_module(name, nn.Linear(2, 2))
    again = construct(json.loads(json.dumps(describe(model))))
    assert [name for name, _ in again.named_children()] == ["late", "early"]
    x: Tensor = torch.ones(1, 2)
    assert again(x).shape == (1, 2)
