"""The yardstick against the slow definitions."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.evaluate import compare, metric
from lissom.search import yardstick as module
from lissom.search.parity import relative
from lissom.search.yardstick import Yardstick


def moved(model: nn.Module) -> nn.Module:
    """The same model with weights a little apart."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.6)
    return other


def test_figures_are_those_of_a_comparison_and_the_distance_is_kl(
    classifier: nn.Module, examples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXAMPLES", 300)
    rod, other = Yardstick(classifier, examples, [metric("accuracy")]), moved(classifier)
    told, far = rod.compare(other)
    figures = told["accuracy"]
    wanted = compare(classifier, other, examples, "accuracy")
    assert (figures.original, figures.compressed, figures.drop) == (wanted.original, wanted.compressed, wanted.drop)
    with torch.no_grad():
        p, q = (m(examples[0][:384]).log_softmax(-1) for m in (classifier, other))  # whole batches of 128
    assert far.value == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-3)
    assert rod.distance(other) == pytest.approx(far.value)
    assert rod.distance(classifier) == 0


def test_the_original_need_not_stay_unless_the_metric_is_between_two_models() -> None:
    x, model = torch.randn(40, 8), nn.Linear(8, 3)
    kept = Yardstick(model, x, [metric("kl")])
    freed = Yardstick(copy.deepcopy(model), (x, torch.randint(3, (40,))), [metric("accuracy")])
    assert kept.original is model
    assert freed.original is None
    assert freed.distance(model) == 0


def test_what_gives_no_logits_is_compared_by_its_output(classifier: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    def sure(model: nn.Module, batch: Any) -> Tensor:
        found: Tensor = model(batch[0]).softmax(1).amax(1)
        return found

    rod, other = Yardstick(classifier, examples, [metric(sure)]), moved(classifier)
    figures, far = rod.compare(other)
    assert figures["sure"].metric == "sure"
    with torch.no_grad():
        f, g = classifier(examples[0][:512]), other(examples[0][:512])
    assert far.value == pytest.approx(float((f - g).square().sum() / f.square().sum()), rel=1e-3)
    assert far.unit == ""


def test_an_output_may_be_a_number_for_each_example(classifier: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    class Alone(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.model(x)[:, 0]
            return found

    def near(model: nn.Module, batch: Any) -> Tensor:
        found: Tensor = model(batch[0]).sigmoid()
        return found

    first, second = Alone(classifier), Alone(moved(classifier))
    with torch.no_grad():
        f, g = first(examples[0][:512]), second(examples[0][:512])
    far = float((f - g).square().sum() / f.square().sum())
    assert Yardstick(first, examples, [metric(near)]).distance(second) == pytest.approx(far, rel=1e-3)
    assert relative(f, g) == pytest.approx((f - g).abs() / f.square().mean().sqrt(), rel=1e-4)


def test_a_metric_between_two_models_is_taken_between_them(
    classifier: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    other = moved(classifier)
    figures, _ = Yardstick(classifier, examples, [metric("agreement")]).compare(other)
    assert figures == {"agreement": compare(classifier, other, examples, "agreement")}


def test_of_many_predictions_some_are_remembered(
    classifier: nn.Module, examples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows: Tensor = classifier(x).unsqueeze(1) * torch.arange(1.0, 9.0).reshape(1, 8, 1)
            return rows

    monkeypatch.setattr(module, "ROOM", 512 * 4 * 4 * 2)
    rod = Yardstick(Several(), examples[0], [metric("agreement")])
    assert rod.every == 4
    assert {tuple(output.shape[1:]) for output in rod.outputs} == {(2, 4)}
    assert rod.distance(Several()) == 0


def test_several_metrics_are_those_of_each_and_outputs_may_be_of_other_examples(
    classifier: nn.Module, examples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model runs once on a batch for all metrics that read the same."""
    monkeypatch.setattr(module, "EXAMPLES", 300)
    runs: list[int] = []

    def wrong(logits: Tensor, batch: Any) -> Tensor:
        return logits.argmax(1) != batch[1]

    accuracy, other = metric("accuracy"), moved(classifier)
    kinds = [dataclasses.replace(accuracy, name="error", score=wrong), accuracy, metric("kl")]
    few = tuple(part[:384] for part in examples)
    other.register_forward_hook(lambda *_: runs.append(1))
    figures, far = Yardstick(classifier, examples, kinds).compare(other)
    assert list(figures) == ["error", "accuracy", "kl"]
    assert len(runs) == 2 * -(-2400 // 128)  # once more for what is between two models
    assert figures["error"].drop.value == pytest.approx(-figures["accuracy"].drop.value)
    assert figures["kl"].drop.value == pytest.approx(compare(classifier, other, examples, "kl").drop.value)
    apart, near = Yardstick(classifier, few, [accuracy], (examples, accuracy)).compare(other)
    assert near == far
    wanted = compare(classifier, other, few, "accuracy")
    assert (apart["accuracy"].compressed, apart["accuracy"].drop) == (wanted.compressed, wanted.drop)


@pytest.mark.parametrize(("n", "lot", "looks"), [(2048, 32, [128, 256]), (128, 4, [16, 32])])
def test_who_can_tell_from_a_part_of_the_examples_stops_after_it(
    classifier: nn.Module,
    examples: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    lot: int,
    looks: list[int],
) -> None:
    monkeypatch.setattr(module, "EXAMPLES", 16)
    kind, other = dataclasses.replace(metric("accuracy"), examples=lot), copy.deepcopy(classifier)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p))
    data, seen = (tuple(part[:many] for part in examples) for many in (n, looks[1]))
    rod, asked = Yardstick(classifier, data, [kind]), list[int]()
    whole, far = rod.compare(other)

    def second(figures: Any) -> bool:
        asked.append(figures["accuracy"].drop.n)
        return len(asked) == 2

    found, near = rod.compare(other, second)
    wanted = compare(classifier, other, seen, kind)
    assert (found["accuracy"].drop, found["accuracy"].flips, near) == (wanted.drop, wanted.flips, far)
    assert found["accuracy"].drop != whole["accuracy"].drop
    assert asked == looks
    assert rod.compare(other, lambda figures: False) == (whole, far)
