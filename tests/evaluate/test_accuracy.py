import numpy as np
import pytest
import torch
from torch import nn

from lissom.errors import DataError
from lissom.evaluate import METRICS
from lissom.evaluate.accuracy import correct, targets
from lissom.evaluate.agreement import predictions

ACCURACY = METRICS["accuracy"]


@pytest.fixture
def data():
    return torch.randn(300, 4), torch.randint(3, (300,))


def test_the_oracle(data):
    model = nn.Linear(4, 3)
    x, y = data
    right = [float(model(row).argmax() == target) for row, target in zip(x, y, strict=True)]
    assert ACCURACY.scores(model, data).tolist() == right
    assert ACCURACY.summary(np.array(right)).value == pytest.approx(np.mean(right))


def test_every_shape_of_data_scores_the_same(data):
    model = nn.Linear(4, 3)
    x, y = data
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    named = [{"input": x, "labels": y}]
    for other in [[(x[:100], y[:100]), [x[100:], y[100:]]], loader, named]:
        assert np.array_equal(ACCURACY.scores(model, other), ACCURACY.scores(model, data))


def test_logits_may_be_an_attribute(data):
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Model(nn.Linear):
        def forward(self, x):
            return Output(super().forward(x))

    model = Model(4, 3)
    plain = nn.Linear(4, 3)
    plain.load_state_dict(model.state_dict())
    assert np.array_equal(ACCURACY.scores(model, data), ACCURACY.scores(plain, data))


@pytest.mark.parametrize(
    "given",
    [lambda y: {"aux": y[:1], "logits": y}, lambda y: (y, y.sum()), lambda y: [y]],
    ids=["dict", "tuple", "list"],
)
def test_logits_may_be_among_several_outputs(data, given):
    class Model(nn.Linear):
        def forward(self, x):
            return given(super().forward(x))

    model, plain = Model(4, 3), nn.Linear(4, 3)
    plain.load_state_dict(model.state_dict())
    assert np.array_equal(ACCURACY.scores(model, data), ACCURACY.scores(plain, data))
    assert torch.equal(predictions(model, data), plain(data[0]))


@pytest.mark.parametrize("batch", [torch.ones(2, 3), (torch.ones(2, 3), torch.ones(2)), {"input": torch.ones(2, 3)}])
def test_data_without_classes_is_refused(batch):
    with pytest.raises(DataError, match="the class of every example"):
        targets(batch)


def test_outputs_that_are_no_logits_are_refused(data):
    with pytest.raises(DataError, match=r"the model gave \[128\] where logits"):
        ACCURACY.scores(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), data)


def test_the_first_of_equal_logits_wins():
    assert correct(torch.zeros(2, 3), (torch.zeros(2, 1), torch.tensor([0, 1]))).tolist() == [True, False]
