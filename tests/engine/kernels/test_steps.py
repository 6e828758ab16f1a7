"""Steps of recurrent layers in C: every kernel that runs here against the definition in PyTorch, step by step."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lissom
from lissom.engine.kernels import native
from lissom.engine.kernels.panels import PanelLinear, panel_layer
from lissom.engine.kernels.steps import PanelSteps
from lissom.engine.lower import lower
from lissom.formats import Affine, freeze, wrap
from lissom.models.recurrent import KINDS, Recurrent, Steps

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
needs_library = pytest.mark.skipif(not native.kernels(), reason="the kernels in C were not built")


def hidden(size: int, gates: int) -> PanelLinear:
    """A layer of 4 bits whose outputs are not too large for what is said to change."""
    layer = nn.Linear(size, gates * size)
    codes = torch.randint(16, (gates * size, size), dtype=torch.uint8)
    made = panel_layer(wrap(layer, Affine.of(codes, torch.full((gates * size, 1), 0.5 / size), None, 4, None)))
    assert made is not None
    return made


def close(made: Any, wanted: Any) -> None:
    for own, its in zip(flat(made), flat(wanted), strict=True):
        torch.testing.assert_close(own, its, rtol=1e-4, atol=1e-5)


@needs_library
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@given(size=st.integers(1, 70), batch=st.integers(1, 12), steps=st.integers(1, 6), seed=st.integers(0, 99))
def test_all_kernels_say_what_the_definition_does(
    kind: str, backward: bool, size: int, batch: int, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    ran = PanelSteps(kind, backward, hidden(size, GATES[kind]))
    gates = 2 * torch.randn(steps, batch, GATES[kind] * size)
    kept = tuple(torch.randn(batch, size) for _ in range(2 if kind == "LSTM" else 1))
    given = copy.deepcopy(kept)
    for kernel in native.kernels():
        said, *after = ran.run(gates, kept, kernel)
        now = kept
        for t in reversed(range(steps)) if backward else range(steps):
            made = ran.step(gates[t], now)
            close(said[t], made[0])
            now = said[t], *made[1:]  # to the bit what was said, or inputs might be rounded another way
        close(after, now)
        assert all(map(torch.equal, kept, given))  # they are the caller's


@needs_library
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_is_quantized_goes_to_them(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"reads": kind(20, 24, 2, bidirectional=True)}), torch.randn(9, 3, 20)
    quantized = freeze(lissom.quantize_model(model, bits=8)).eval()
    reads: Any = lower(copy.deepcopy(quantized))["reads"]
    assert isinstance(reads, Recurrent)
    assert [type(part) for part in reads.modules() if isinstance(part, Steps)] == [PanelSteps] * 4
    with torch.inference_mode():
        for ran, wanted in zip(flat(reads(x)), flat(model["reads"](x)), strict=True):
            torch.testing.assert_close(ran, wanted, rtol=0.05, atol=0.02)
        empty, _ = reads(torch.randn(9, 0, 20))
        assert empty.shape == (9, 0, 48)


def flat(said: Any) -> list[Tensor]:
    return [said] if isinstance(said, Tensor) else [part for own in said for part in flat(own)]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_is_projected_or_dense_stays_step_by_step() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(8, 16, proj_size=4), "b": nn.LSTM(8, 16)})
    steps = [{"technique": "rtn", "bits": 8, "layers": name} for name in ("a.*", "b.input_l0")]
    made: Any = lower(freeze(lissom.compress_model(model, steps=steps)).eval())
    assert [type(part) for part in made.modules() if isinstance(part, Steps)] == [Steps, Steps]
    x = torch.randn(5, 2, 8)
    with torch.inference_mode():
        for name in ("a", "b"):
            torch.testing.assert_close(made[name](x)[0], model.get_submodule(name)(x)[0], rtol=0.05, atol=0.02)
