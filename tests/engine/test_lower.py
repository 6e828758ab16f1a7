"""Layers swapped for the kernel that fits them, and only those."""

import copy
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lissom.compress import compress_model, quantize_model
from lissom.engine.kernels.layer import KernelEmbedding
from lissom.engine.kernels.masked import MaskedLinear
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.lower import fitting, lower, placed, tables_first
from lissom.errors import LissomError
from lissom.formats import CompressedConv, CompressedLinear, freeze


def one(o: int, i: int, **knobs: object) -> Any:
    return freeze(compress_model(nn.Sequential(nn.Linear(i, o)), steps=[{"technique": "rtn", **knobs}]))


@pytest.mark.parametrize("knobs", [{"bits": 8}, {"bits": 4, "group": 16}, {"bits": 3, "symmetric": False}])
@pytest.mark.parametrize(("o", "i"), [(7, 48), (16, 80)])
def test_a_layer_of_integers_goes_to_its_kernel(o: int, i: int, knobs: dict[str, Any]) -> None:
    lowered: Any = lower(one(o, i, **knobs))
    assert type(lowered[0]) is PanelLinear


def test_what_fits_no_kernel_stays_and_the_rest_computes_nearly_the_same() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    quantized: Any = freeze(quantize_model(model)).eval()
    before = copy.deepcopy(quantized)
    lowered: Any = lower(quantized)
    assert lowered is quantized
    assert [type(part) for part in quantized] == [CompressedConv, nn.Flatten, PanelLinear, nn.ReLU, PanelLinear]
    x = torch.randn(5, 2, 10)
    torch.testing.assert_close(lowered(x), before(x), rtol=0.05, atol=0.02)


def test_other_formats_and_trainable_layers_stay() -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    floats = freeze(compress_model(model, steps=[{"technique": "floats"}]))
    for stays in (quantize_model(model), floats):
        lowered: Any = lower(stays)
        assert type(lowered[0]) is CompressedLinear


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_gives_the_rows_of_its_panels(tied: bool) -> None:
    model = nn.Sequential(nn.Embedding(37, 32), nn.Linear(32, 37, bias=False))
    if tied:
        model[1].weight = model[0].weight
    steps = [{"technique": "rtn", "bits": 4, "group": 16, "symmetric": False}]
    quantized: Any = freeze(compress_model(model, steps=steps))
    index = torch.tensor([[5, 36, 5], [0, 31, 32]])
    before = quantized[0](index)
    lowered: Any = lower(quantized)
    assert [type(part) for part in lowered] == [KernelEmbedding, PanelLinear]
    assert (lowered[0].layer is lowered[1]) == tied  # held once
    torch.testing.assert_close(lowered[0](index), before, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("sparsity", [0.5, 0.99])  # of which the second leaves rows without any weight
@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_gives_the_rows_that_were_pruned(tied: bool, sparsity: float) -> None:
    model = nn.Sequential(nn.Embedding(37, 31), nn.Linear(31, 37, bias=False))
    if tied:
        model[1].weight = model[0].weight
    pruned: Any = freeze(compress_model(model, steps=[{"technique": "magnitude", "sparsity": sparsity}]))
    index = torch.tensor([[5, 36, 5], [0, 31, 32]])
    before = pruned[0](index)
    lowered: Any = lower(pruned)
    assert [type(part) for part in lowered] == [KernelEmbedding, MaskedLinear]
    assert (lowered[0].layer is lowered[1]) == tied  # held once
    assert torch.equal(lowered[0](index), before)


@pytest.mark.parametrize("index", [-1, 37])
def test_an_embedding_refuses_rows_that_there_are_not(index: int) -> None:
    lowered: Any = lower(freeze(quantize_model(nn.Sequential(nn.Embedding(37, 32)))))
    assert type(lowered[0]) is KernelEmbedding
    with pytest.raises(LissomError, match="possible are 0 to 36"):
        lowered(torch.tensor([3, index]))
    assert lowered(torch.empty(0, dtype=torch.long)).shape == (0, 32)


def test_a_layer_in_two_places_is_lowered_once() -> None:
    layer = nn.Linear(32, 32)
    lowered: Any = lower(freeze(quantize_model(nn.Sequential(layer, nn.ReLU(), layer))))
    assert type(lowered[0]) is PanelLinear
    assert lowered[0] is lowered[2]


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_large_is_lowered_before_the_rest_is_read(tied: bool) -> None:
    model: Any = nn.Sequential(
        nn.Embedding(37, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 37, bias=False)
    )
    if tied:
        model[3].weight = model[0].weight
    assert tables_first(freeze(quantize_model(model))) == (["3", "0", "2", "1"] if tied else ["0", "3", "2", "1"])


def test_a_layer_is_let_go_of_before_the_next_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = freeze(quantize_model(nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))))
    held = [weakref.ref(layer) for layer in model]
    alive: list[int] = []

    def counting(layer: Any) -> Any:
        alive.append(sum(one() is not None for one in held))
        return fitting(layer)

    monkeypatch.setattr("lissom.engine.lower.fitting", counting)
    lower(model)
    assert alive == [3, 2, 1]


def test_on_a_cpu_a_model_stays_as_it_is() -> None:
    model = one(16, 32, bits=4, group=16)
    assert placed(model, torch.device("cpu")) is model
    assert all(part.device.type == "cpu" for part in model.state_dict().values())


def test_on_a_gpu_what_was_learned_has_16_bits_and_what_is_stored_stays() -> None:
    model: Any = nn.Sequential(one(16, 32, bits=4, group=16), nn.LayerNorm(16))
    model.register_buffer("angles", torch.zeros(4))
    model.config = SimpleNamespace(dtype="bfloat16")
    held = placed(model, torch.device("meta")).state_dict()  # which is no CPU either
    types = {name: part.dtype for name, part in held.items()}
    assert {part.device.type for part in held.values()} == {"meta"}
    assert types["0.0.bias"] == types["1.weight"] == torch.bfloat16
    assert types["0.0.matrix.part_scale"] == torch.float16
    assert types["angles"] == torch.float32
