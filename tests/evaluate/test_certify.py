import inspect

import numpy as np
import pytest
import torch
from torch import nn

from lissom.errors import DataError
from lissom.estimate import certify, joint
from lissom.evaluate import METRICS, Metric, budgets_of, certify_beside, certify_models, grades, metric, paired
from lissom.types import Budget


@pytest.fixture
def data():
    x = torch.randn(1200, 4)
    return x, (x[:, 0] > 0).long()


@pytest.fixture
def models():
    original, compressed = nn.Linear(4, 2), nn.Linear(4, 2)
    with torch.no_grad():
        original.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
        original.bias.zero_()
    compressed.load_state_dict(original.state_dict())
    return original, compressed


def counted(data, size):
    """The data in batches, and how many were taken."""
    taken = []

    def batches():
        for batch in zip(*(part.split(size) for part in data), strict=True):
            taken.append(len(batch[0]))
            yield batch

    return batches(), taken


def test_examples_are_looked_at_until_the_verdict_is_clear(models, data):
    batches, taken = counted(data, 50)
    found = certify_models(*models, batches, {"accuracy": Budget(max_drop=0.05)})
    fewest = METRICS["accuracy"].fewest_examples(Budget(max_drop=0.05))
    assert found.verdict == "PASS"
    assert found.n == sum(taken) == -(-fewest // 50) * 50 < 1200


def test_what_is_undecided_takes_all_and_is_the_certificate_of_the_scores(models, data):
    with torch.no_grad():
        models[1].weight += 0.01 * torch.randn(2, 4)
    budget = Budget(max_drop=0.001)
    scores = paired(*models, data)
    expected = certify(scores.original, scores.compressed, budget)
    assert expected.verdict == "NEED MORE"
    assert certify_models(*models, data, {"accuracy": budget}) == expected


def test_a_broken_model_fails_soon_in_whatever_breaks(models, data):
    with torch.no_grad():
        models[1].weight.neg_()
    batches, taken = counted(data, 50)
    budgets = {"accuracy": Budget(max_drop=0.05), "agreement": Budget(max_drop=0.9)}
    found = certify_models(*models, batches, budgets)
    assert (found.verdict, found.metric) == ("FAIL", "accuracy")
    assert set(found.parts) == {"accuracy", "agreement"}
    assert sum(taken) == 50


def sure(model, batch):
    return model(batch[0]).softmax(1).amax(1)


@pytest.mark.parametrize(("moved", "verdict"), [(1.0, "PASS"), (-1.0, "FAIL")])
def test_beside_remembered_scores_it_is_the_certificate_of_two_models(models, data, moved, verdict):
    with torch.no_grad():
        models[1].weight *= moved
    budgets = dict.fromkeys([metric("accuracy"), metric(sure)], Budget(max_drop=0.05))
    before = grades(models[0], data, budgets)
    found = certify_beside(before, models[1], data, budgets)
    assert found == certify_models(*models, data, budgets)
    assert found.verdict == verdict
    assert found.n < len(before["accuracy"])


def test_several_metrics_are_those_of_each(models, data):
    with torch.no_grad():
        models[1].weight *= 1.02
    budgets = {"accuracy": Budget(max_drop=0.0001), "kl": Budget(max_drop=0.5), "agreement": Budget(max_drop=0.02)}
    each = {name: paired(*models, data, name).certify(budget) for name, budget in budgets.items()}
    assert each["kl"].verdict == "PASS"
    assert each["kl"].drop.value == pytest.approx(paired(*models, data).kl.mean())
    assert certify_models(*models, data, budgets) == joint(each)


def test_a_model_runs_once_for_metrics_that_read_the_same(models, data):
    runs = []
    models[0].register_forward_hook(lambda *_: runs.append(1))
    certify_models(*models, data, {"kl": Budget(max_drop=0.5), "agreement": Budget(max_drop=0.0001)})
    assert len(runs) == -(-1200 // METRICS["kl"].examples)


def test_a_function_of_ones_own_is_certified(models, data):
    def sure(model, batch):
        return model(batch[0]).softmax(1).gather(1, batch[1][:, None])[:, 0]

    assert certify_models(*models, data, {sure: Budget(max_drop=0.05)}).verdict == "PASS"


def test_clusters_are_the_units(models, data):
    found = certify_models(*models, data, {"accuracy": Budget(max_drop=0.05)}, clusters=np.arange(1200) // 30)
    assert (found.verdict, found.n) == ("NEED MORE", 40)


def test_what_takes_all_examples_is_given_all(models, data):
    def centred(graded):
        return (graded - graded.mean()) / len(graded)

    taking = Metric(name="centred", output=lambda model, batch: model(batch[0])[:, 0], whole=centred, bounds=None)
    batches, taken = counted(data, 100)
    found = certify_models(*models, batches, {taking: Budget(max_drop=0.05)})
    assert (found.n, sum(taken), found.verdict) == (1200, 1200, "PASS")
    assert found == paired(*models, data, taking).certify(Budget(max_drop=0.05))


def test_a_metric_has_one_budget(models, data):
    with pytest.raises(DataError, match="accuracy, accuracy name a metric twice"):
        certify_models(*models, data, {"accuracy": Budget(), METRICS["accuracy"]: Budget(max_drop=0.5)})


def test_there_is_no_share_of_a_divergence_of_nothing(models, data):
    with pytest.raises(DataError, match="kl: the original's own is 0"):
        certify_models(*models, data, {"kl": Budget(relative=True)})


def test_no_budget_is_a_mistake(models, data):
    with pytest.raises(DataError, match="at least one metric"):
        certify_models(*models, data, {})
    with pytest.raises(DataError, match=r"budget: 0\.02 is none; write lissom\.Budget"):
        inspect.unwrap(budgets_of)({"accuracy": 0.02})  # without the checks of types that tests run with


@pytest.mark.parametrize("size", [1, 7, 200])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_metrics_and_relative_budgets_go_together(models, data, size, seed):
    """As each metric's scores, all at once, with clusters of any sizes and in any order, however they are cut."""
    rng = np.random.default_rng(seed)
    x, y = (part[:200] for part in data)
    clusters = rng.integers(0, 25, 200)
    with torch.no_grad():
        models[1].weight += 0.2 * torch.from_numpy(rng.normal(size=(2, 4))).float()

    def sure(model, batch):
        return model(batch[0]).softmax(1).gather(1, batch[1][:, None])[:, 0]

    budgets = {
        "accuracy": Budget(max_drop=0.02, relative=True),
        sure: Budget(max_drop=0.03, relative=True),
        "agreement": Budget(max_drop=0.05),
        "kl": Budget(max_drop=0.0001),
    }
    parts = list(zip(x.split(size), y.split(size), strict=True))
    found = certify_models(*models, parts, budgets, clusters=clusters)
    seen = found.n if found.verdict != "NEED MORE" else np.unique(clusters).size
    assert all(part.n == seen for part in found.parts.values())
    for by, budget in budgets.items():
        scores = paired(*models, (x, y), by)
        kind = scores.metric
        until = last_of(clusters, seen)
        before, after = scores.original[:until], scores.compressed[:until]
        alone = certify(before, after, budget, bounds=kind.bounds, clusters=clusters)
        assert found.parts[kind.name].verdict == alone.verdict
        assert found.parts[kind.name].drop.value == pytest.approx(alone.drop.value, abs=1e-6)


def last_of(clusters, many):
    """How many examples there are when so many clusters are whole."""
    last = [int(np.flatnonzero(clusters == label).max()) for label in np.unique(clusters)]
    return sorted(last)[many - 1] + 1


@pytest.mark.parametrize(
    ("bounds", "draw"),
    [((0.0, 1.0), lambda rng: rng.random(150) < 0.1), (None, lambda rng: 0.2 * rng.random(150))],
)
def test_a_relative_drop_of_clusters_that_is_the_budget_is_rarely_passed(bounds, draw):
    """A cluster loses the same share of all its scores; beside it passes a metric that is kept."""
    rng, budget, passed = np.random.default_rng(0), Budget(max_drop=0.1, relative=True), 0
    for _ in range(300):
        sizes = rng.integers(1, 9, 150)
        clusters = np.repeat(np.arange(150), sizes)
        before = rng.beta(4, 2, clusters.size)
        after = before * (1 - np.repeat(draw(rng), sizes))
        both = {
            "broken": certify(before, after, budget, bounds=bounds, clusters=clusters),
            "kept": certify(before, before, budget, bounds=bounds, clusters=clusters),
        }
        assert both["kept"].verdict == "PASS"
        passed += joint(both).verdict == "PASS"
    assert passed <= 300 * (0.05 + 2 * np.sqrt(0.05 * 0.95 / 300))
