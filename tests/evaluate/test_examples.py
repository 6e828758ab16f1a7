import pytest
import torch
from torch import nn

from lissom.errors import DataError
from lissom.evaluate.examples import evaluating, pieces


def test_models_are_left_in_their_modes():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    other = nn.Linear(2, 2).eval()
    with evaluating(model, other):
        assert not any(part.training for part in model.modules())
        assert not torch.is_grad_enabled()
    assert [part.training for part in model.modules()] == [True, True, False]
    assert not other.training


def test_modes_come_back_after_an_error():
    model = nn.Dropout()
    with pytest.raises(RuntimeError, match="boom"), evaluating(model):
        raise RuntimeError("boom")
    assert model.training


def test_batches_are_cut():
    x, y = torch.arange(10.0).reshape(5, 2), torch.arange(5)
    parts = list(pieces((x, y), 2, nn.Identity()))
    assert [len(targets) for _, targets in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([inputs for inputs, _ in parts]), x)


@pytest.mark.parametrize("data", [[], torch.empty(0, 3), iter(())])
def test_no_examples_are_refused(data):
    with pytest.raises(DataError, match="no examples"):
        list(pieces(data, 2, nn.Identity()))
