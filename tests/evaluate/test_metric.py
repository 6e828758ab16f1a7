import numpy as np
import pytest
import torch
from torch import nn

from lissom.errors import DataError
from lissom.evaluate import METRICS, Metric, metric
from lissom.types import Budget


def closeness(model, batch):
    x, y = batch
    return 1 / (1 + (model(x) - y).square().mean(1))


def test_a_function_is_a_metric():
    data = torch.randn(300, 4), torch.randn(300, 2)
    model = nn.Linear(4, 2)
    found = metric(closeness)
    assert found.name == "closeness"
    assert found.scores(model, data) == pytest.approx(closeness(model, data).detach().double().numpy())


def test_names_and_metrics_are_found():
    assert metric("accuracy") is METRICS["accuracy"]
    assert metric(METRICS["perplexity"]) is METRICS["perplexity"]
    with pytest.raises(DataError, match="'f1' is none of accuracy, perplexity"):
        metric("f1")


def test_each_metric_certifies_on_its_own_scale():
    budget = Budget(max_drop=0.01)
    same = np.ones(1000)
    assert METRICS["accuracy"].certify(same, same, budget).verdict == "PASS"
    log_likelihood = -3 + np.arange(40) / 100
    assert METRICS["perplexity"].certify(log_likelihood, log_likelihood - 0.0099, budget).verdict == "PASS"
    assert METRICS["perplexity"].certify(log_likelihood, log_likelihood - 0.01, budget).verdict == "FAIL"
    percent = Metric(name="percent", output=closeness, bounds=(0.0, 100.0))
    assert percent.certify(100 * same, 100 * same - 0.5, budget).verdict == "PASS"


def test_each_metric_knows_the_fewest_examples():
    budget = Budget(max_drop=0.05)
    assert METRICS["accuracy"].fewest_examples(budget) == 70
    assert METRICS["perplexity"].fewest_examples(budget) == 20
