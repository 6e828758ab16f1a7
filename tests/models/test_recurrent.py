"""torch.nn's recurrent layers set apart: what they say is the oracle, and it is the same however they are called."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lissom
from lissom.engine.lower import lower
from lissom.errors import DataError
from lissom.formats import CompressedLinear, freeze
from lissom.models import compressible
from lissom.models.apart import apart, put_back, set_apart
from lissom.models.recurrent import Cell, Recurrent

INPUTS, HIDDEN, BATCH, STEPS, CLASSES = 6, 16, 3, 7, 4
KINDS: dict[str, type[nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
ASKED: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"num_layers": 2, "dropout": 0.5},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
]


def drawn(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def fused(kind: str, **asked: Any) -> nn.RNNBase:
    torch.manual_seed(3)
    return KINDS[kind](INPUTS, HIDDEN, **asked).eval()


def begun(layer: nn.RNNBase, *batch: int) -> Any:
    """What may be given for the steps before the first."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    said = drawn(count, *batch, layer.proj_size or HIDDEN)
    return (said, drawn(count, *batch, HIDDEN)) if layer.mode == "LSTM" else said


def same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    else:
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            same(mine, its)


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_it_says_the_same(kind: str, asked: dict[str, Any]) -> None:
    layer = fused(kind, **asked)
    ours, x = Recurrent(layer), drawn(STEPS, BATCH, INPUTS)
    x = x.transpose(0, 1) if layer.batch_first else x
    same(ours(x), layer(x))
    same(ours(x, begun(layer, BATCH)), layer(x, begun(layer, BATCH)))
    alone = x[0] if layer.batch_first else x[:, 0]
    same(ours(alone), layer(alone))
    same(ours(alone, begun(layer)), layer(alone, begun(layer)))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_is_rectified_and_what_is_projected() -> None:
    x = drawn(STEPS, BATCH, INPUTS)
    for layer in (fused("RNN", nonlinearity="relu"), fused("LSTM", proj_size=5, num_layers=2, bidirectional=True)):
        same(Recurrent(layer)(x, begun(layer, BATCH)), layer(x, begun(layer, BATCH)))


@pytest.mark.parametrize("lengths", [[7, 4, 4], [2, 7, 5], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("asked", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sequences_of_different_lengths(kind: str, asked: dict[str, Any], lengths: list[int]) -> None:
    layer, x = fused(kind, **asked), drawn(STEPS, BATCH, INPUTS)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    for given in ((), (begun(layer, BATCH),)):
        (made, kept), (wanted, its) = (one(packed, *given) for one in (Recurrent(layer), layer))
        assert isinstance(made, PackedSequence)
        same(pad_packed_sequence(made), pad_packed_sequence(wanted))
        same(kept, its)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_for_other_sequences_is_refused(kind: str) -> None:
    """Where steps run in C its rows would be read beyond their end."""
    layer, x = fused(kind), drawn(STEPS, BATCH, INPUTS)
    packed = pack_padded_sequence(x, torch.tensor([7, 4, 4]))
    for ours in (Recurrent(layer), lower(freeze(lissom.quantize_model(layer, bits=8)).eval())):
        for given in (x, packed):
            with pytest.raises(DataError, match=r"of 3 sequences it has to be \[\(1, 3, 16\)"):
                ours(given, begun(layer, 1))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_single_step(kind: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(3)
    cell, x, kept = kind(INPUTS, HIDDEN), drawn(BATCH, INPUTS), drawn(BATCH, HIDDEN)
    given = (kept, drawn(BATCH, HIDDEN)) if kind is nn.LSTMCell else kept
    same(Cell(cell)(x), cell(x))
    same(Cell(cell)(x, given), cell(x, given))
    same(Cell(cell)(x[0]), cell(x[0]))


def test_gradients_are_the_same() -> None:
    layer, x = fused("LSTM", bidirectional=True).train(), drawn(STEPS, BATCH, INPUTS)
    ours = Recurrent(layer)
    for one in (layer, ours):
        one(x)[0].square().sum().backward()
    same(ours.steps_l0_reverse.hidden.weight.grad, layer.weight_hh_l0_reverse.grad)
    same(ours.input_l0.bias.grad, layer.bias_ih_l0.grad)


class Reader(nn.Module):
    """A classifier of sequences."""

    def __init__(self, kind: str = "LSTM", **asked: Any) -> None:
        super().__init__()
        self.reads = fused(kind, batch_first=True, **asked)
        self.says = nn.Linear(HIDDEN * (2 if self.reads.bidirectional else 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of classes, by what is said last."""
        said: Tensor = self.says(self.reads(x)[0][:, -1])
        return said


def sequences(count: int = 64, steps: int = STEPS) -> Tensor:
    return drawn(count, steps, INPUTS)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_compressed_whole_and_runs(kind: str, bits: int) -> None:
    model, x = Reader(kind, bidirectional=True).eval(), sequences()
    quantized = lissom.quantize_model(model, x, bits=bits).eval()
    layers = compressible(quantized)
    assert len(layers) == 2 * 2 + 1
    assert all(isinstance(layer, CompressedLinear) for layer in layers.values())
    with torch.inference_mode():
        said = model(x)
        far = [(ran(x) - said).square().mean() / said.var() for ran in (quantized, lower(freeze(quantized)))]
    assert 0 < max(far) < (1e-3 if bits == 8 else 0.1)


def test_it_learns_as_it_is_stored() -> None:
    model, x = Reader().eval(), sequences(256)
    right = model(x).argmax(1)
    quantized = lissom.quantize_model(model, x, bits="binary").train()
    optimizer, losses = torch.optim.Adam(quantized.parameters(), lr=0.01), list[float]()
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(quantized(x), right)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_runs_without_its_class_on_any_number_of_steps(kind: str, tmp_path: Path) -> None:
    quantized = lissom.quantize_model(Reader(kind, num_layers=2, bidirectional=True), sequences(), bits=4).eval()
    lissom.save(quantized, tmp_path / "small", example=sequences(2))
    found = lissom.load(tmp_path / "small")
    assert type(found).__name__ == "Reader"
    assert len(compressible(found)) == 2 * 2 * 2 + 1
    with torch.inference_mode():
        for x in (sequences(5), sequences(3, 11)):
            torch.testing.assert_close(found(x), quantized(x), rtol=1e-4, atol=1e-5)
    lissom.save(found, tmp_path / "again", example=sequences(2))
    with torch.inference_mode():
        by_class = lissom.load(tmp_path / "small", model=Reader(kind, num_layers=2, bidirectional=True))
        for other in (lissom.load(tmp_path / "again"), by_class):
            torch.testing.assert_close(other(x), found(x))


def test_what_is_not_compressed_stays_torch_s() -> None:
    model = Reader(num_layers=2, proj_size=5, dropout=0.1)
    there = put_back(apart(copy.deepcopy(model)))
    assert repr(there) == repr(model)
    same(list(there.state_dict().values()), list(model.state_dict().values()))


def test_a_part_of_it_may_be_compressed() -> None:
    model, x = Reader(), sequences()
    steps = [{"technique": "rtn", "bits": 8, "layers": "reads.input_l0"}]
    made = lissom.compress_model(model, x, steps=steps)
    kinds = {name: type(layer) for name, layer in compressible(made).items()}
    assert kinds == {"reads.input_l0": CompressedLinear, "reads.steps_l0.hidden": nn.Linear, "says": nn.Linear}
    with torch.inference_mode():
        same(set_apart(model)(x), model(x))
        torch.testing.assert_close(lower(freeze(made))(x), model(x), atol=0.02, rtol=0.1)


def test_a_folder_may_hold_them_in_one_piece(tmp_path: Path) -> None:
    """Where none of their layers is compressed, and in folders of lissom before."""
    model, x = Reader().eval(), sequences()
    made = lissom.compress_model(model, steps=[{"technique": "rtn", "bits": 8, "layers": "says"}]).eval()
    lissom.save(made, tmp_path / "one piece")
    found = lissom.load(tmp_path / "one piece", model=Reader())
    assert isinstance(found.get_submodule("reads"), nn.LSTM)
    with torch.inference_mode():
        torch.testing.assert_close(found(x), made(x))
