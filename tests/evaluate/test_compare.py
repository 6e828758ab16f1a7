import numpy as np
import pytest
import torch
from torch import nn

from lissom.evaluate import METRICS, compare, paired
from lissom.types import Budget


@pytest.fixture
def data():
    x = torch.randn(1000, 4)
    return x, (x[:, 0] > 0).long()


@pytest.fixture
def models():
    original, compressed = nn.Linear(4, 2), nn.Linear(4, 2)
    compressed.load_state_dict(original.state_dict())
    with torch.no_grad():
        compressed.weight += 0.05 * torch.randn(2, 4)
    return original, compressed


def test_pairing_is_scoring_twice(models, data):
    scores = paired(*models, data)
    assert np.array_equal(scores.original, METRICS["accuracy"].scores(models[0], data))
    assert np.array_equal(scores.compressed, METRICS["accuracy"].scores(models[1], data))


def test_an_iterator_is_read_once(models, data):
    batches = zip(data[0].split(100), data[1].split(100), strict=True)
    assert np.array_equal(paired(*models, batches).compressed, paired(*models, data).compressed)


def test_figures(models, data):
    found = compare(*models, data)
    before, after = (METRICS["accuracy"].scores(model, data) for model in models)
    assert found.original.value == pytest.approx(before.mean())
    assert found.drop.value == pytest.approx((before - after).mean())
    assert found.drop.low < found.drop.value < found.drop.high
    assert found.flips is not None
    assert found.flips.value == np.mean(before != after) > 0
    assert found.kl is not None
    assert found.kl.value > 0
    assert found.kl.unit == "nats"
    same = np.mean(models[0](data[0]).argmax(1).numpy() == models[1](data[0]).argmax(1).numpy())
    assert found.same_top1 is not None
    assert found.same_top1.value == pytest.approx(same)
    assert found.same_top1.high <= 1


def test_a_models_copy_keeps_the_budget(models, data):
    scores = paired(models[0], models[0], data)
    assert scores.certify(Budget(max_drop=0.01)).verdict == "PASS"


def test_a_metric_without_logits_has_no_agreement(models, data):
    def sure(model, batch):
        return model(batch[0]).softmax(1).amax(1)

    found = compare(*models, data, sure)
    assert found.metric == "sure"
    assert found.kl is None
    assert found.same_top1 is None
