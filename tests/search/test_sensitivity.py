"""What is foreseen of each candidate, against its definition, and against what comes about."""

import json
import sys
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2TextScaledWordEmbedding

from lissom.compress import compress_model
from lissom.errors import DataError, ModelError, RecipeError
from lissom.evaluate.agreement import divergence
from lissom.search.sensitivity import Option, Seen, sensitivity
from lissom.search.sensitivity import look as look_with
from lissom.statistics import Gram
from lissom.types import Step

module = sys.modules[sensitivity.__module__]


def steps(**knobs: Any) -> tuple[Step, ...]:
    return (Step.of({"technique": "rtn", **knobs}),)


def look(model: nn.Module, layers: dict[str, nn.Module], data: Any, seed: int) -> tuple[dict[str, Seen], int]:
    return look_with(model, layers, {name: {Gram} for name in layers}, data, seed)


class Bag(nn.Module):
    """Three words, embedded one after another, then classified through a head that shares the embedding's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.middle = nn.Embedding(12, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 12, bias=False)
        self.head.weight = self.words.weight

    def forward(self, index: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.middle(self.words(index))))
        return logits


@pytest.fixture
def bag() -> tuple[Bag, Tensor]:
    return Bag().eval(), torch.randint(12, (64, 3))


def test_the_figures_are_those_of_their_definitions(bag: tuple[Bag, Tensor]) -> None:
    """The literal sums over rows, with gradients taken one row at a time from the same vectors."""
    model, data = bag
    (found,) = sensitivity(model, data, {"middle": [steps(bits=4)]})["middle"]
    w = model.middle.weight.detach()
    done = compress_model(model, data, steps=[{"layers": "middle", "technique": "rtn", "bits": 4}])
    d = w - done.middle.weight.dense()
    x = model.words(data).detach().flatten(0, 1)
    p = model(data).flatten(0, 1).detach().softmax(-1)
    draw = torch.Generator().manual_seed(0)
    signs = torch.empty(64, 3, 12).bernoulli_(0.5, generator=draw).flatten(0, 1) * 2 - 1
    u = p.sqrt() * signs - p * (p.sqrt() * signs).sum(-1, keepdim=True)
    kl = 0.0
    for row, one in zip(x, u, strict=True):
        out = model.middle(row).detach().requires_grad_()
        (model.head(torch.tanh(out)) @ one).backward()
        assert out.grad is not None
        kl += float(out.grad @ (d @ row)) ** 2 / 2 / 192
    assert found.kl == pytest.approx(kl, rel=1e-3)
    assert found.error == pytest.approx(float((x @ d.T).square().sum() / (x @ w.T).square().sum()), rel=1e-3)
    assert found.nbytes == 16 * 16 // 2 + 2 * 16


def test_an_embedding_that_is_scaled_counts_as_one_of_larger_weights() -> None:
    plain, scaled = nn.Embedding(12, 16), Gemma2TextScaledWordEmbedding(12, 16, None, 8.0)
    plain.weight.data = 8.0 * scaled.weight.data
    data, tried = torch.randint(12, (64, 3)), {"0": [steps(bits=4)]}
    head = nn.Linear(16, 5)
    one, other = (sensitivity(nn.Sequential(words, head), data, tried)["0"][0] for words in (plain, scaled))
    assert other.kl == pytest.approx(one.kl, rel=1e-4)


def test_a_matrix_with_two_uses_counts_both(bag: tuple[Bag, Tensor]) -> None:
    model, data = bag
    found = sensitivity(model, data, {"words": [steps(bits=2), steps(bits=4), steps(bits=8)]})["words"]
    assert [option.kl for option in found] == sorted((option.kl for option in found), reverse=True)
    seen, predictions = look(model, {"words": model.words, "head": model.head}, data, 0)
    d = (
        model.words.weight.detach()
        - compress_model(model, steps=[{"layers": "words", "technique": "rtn", "bits": 2}]).words.weight.dense()
    )
    given, slopes = seen["words"].rows.together
    into = (d[given] * slopes).sum(1).square().sum() / 2 / predictions
    given, slopes = seen["head"].rows.together
    out = (given @ d.T * slopes).sum(1).square().sum() / 2 / predictions
    assert found[0].kl == pytest.approx(float(into + out), rel=1e-4)


def test_of_many_rows_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are about the same; rows of the layers belong together, and none comes twice."""
    model = nn.Sequential(nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 24)).eval()
    lots = [torch.randn(500, 48) for _ in range(8)]
    candidates = {name: [(), *(steps(bits=bits) for bits in (2, 3, 4, 8))] for name in ("0", "2")}
    exact = sensitivity(model, lots, candidates)
    monkeypatch.setattr("lissom.calibrate.gradients.ROWS", 1000)
    found = sensitivity(model, lots, candidates)
    for name, options in found.items():
        for ours, theirs in zip(options[1:], exact[name][1:], strict=True):
            assert ours.kl == pytest.approx(theirs.kl, rel=0.4)
            assert ours.error == pytest.approx(theirs.error, rel=0.1)
            assert ours.kl != theirs.kl
        assert (options[0].kl, options[0].error) == (0, 0)
    seen, predictions = look(model, {"0": model[0], "2": model[2]}, lots, 0)
    assert predictions == 4000
    (x, _), (y, slopes) = seen["0"].rows.together, seen["2"].rows.together
    assert 400 < len(x) == len(y) == len(slopes) <= 1000
    assert seen["0"].rows.kept == len(x) / 4000
    torch.testing.assert_close(torch.tanh(model[0](x)), y)
    assert len(x.unique(dim=0)) == len(x)


def test_of_wide_layers_fewer_rows_are_kept(bag: tuple[Bag, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lissom.calibrate.gradients.NUMBERS", 12 * 100)
    model, data = bag
    seen, _ = look(model, {"middle": model.middle, "head": model.head}, data, 0)
    assert len(seen["head"].rows.together[0]) <= 100
    assert len(seen["middle"].rows.together[0]) <= 75


def test_a_large_matrix_is_tried_some_rows_at_a_time(bag: tuple[Bag, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one whose rows are looked up."""
    model, data = bag
    candidates = {"words": [(), steps(bits=2), steps(bits=8, group=4)]}
    tried: list[int] = []
    plain = module.steps_on

    def watched(name: str, weight: Any, *more: Any) -> Any:
        tried.append(weight.shape[0])
        return plain(name, weight, *more)

    monkeypatch.setattr(module, "steps_on", watched)
    whole = sensitivity(model, data, candidates)["words"]
    tried.clear()
    monkeypatch.setattr("lissom.compress.ram.ROWS", 5 * 16)
    found = sensitivity(model, data, candidates)["words"]
    assert tried == 2 * [5, 5, 2]
    for ours, theirs in zip(found, whole, strict=True):
        assert (ours.steps, ours.nbytes) == (theirs.steps, theirs.nbytes)
        assert (ours.error, ours.kl) == pytest.approx((theirs.error, theirs.kl), rel=1e-5)


def test_convolutions_are_layers_like_the_others() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(8 * 16, 5)).eval()
    x = torch.randn(40, 3, 6, 6)
    names = ["0.0", "0.2", "1"]
    found = sensitivity(model, x, {name: [steps(bits=3)] for name in names})
    with torch.no_grad():
        for name in names:
            done = compress_model(model, steps=[{"layers": name, "technique": "rtn", "bits": 3}])
            true = float(divergence(model(x), done(x)).mean())
            assert 0.3 < found[name][0].kl / true < 3, name


def test_the_order_of_what_is_foreseen_is_that_of_what_comes_about(bag: tuple[Bag, Tensor]) -> None:
    model, data = bag
    tried = [steps(bits=bits) for bits in (2, 3, 4, 8)]
    found = sensitivity(model, data, {"middle": tried, "words": tried})
    told, true = [], []
    with torch.no_grad():
        for name, options in found.items():
            for option in options:
                done = compress_model(model, steps=[{"layers": name, **option.as_dict()["steps"][0]}])
                told.append(option.kl)
                true.append(float(divergence(model(data), done(data)).mean()))
    assert spearmanr(told, true)[0] > 0.9


def test_the_model_is_left_as_it_was(bag: tuple[Bag, Tensor]) -> None:
    model, data = bag
    model.train()
    model.middle.weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    first = sensitivity(model, data, {"middle": [steps(bits=4)]})
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [True, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert not model.middle._forward_hooks
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert sensitivity(model, data, {"middle": [steps(bits=4)]}) == first
    assert not look(model, {"middle": model.middle}, data, 0)[0]["middle"].inputs[Gram].xtx.requires_grad  # type: ignore[attr-defined]


def test_what_cannot_be_is_refused_by_name(bag: tuple[Bag, Tensor]) -> None:
    model, data = bag
    found = sensitivity(model, data, {"middle": [steps(bits=4, group=5), steps(bits=4, group=4)]})
    assert len(found["middle"]) == 1
    with pytest.raises(RecipeError, match="group=5 does not divide"):
        sensitivity(model, data, {"middle": [steps(bits=4, group=5)]})
    with pytest.raises(ModelError, match="has no layer 'tail'"):
        sensitivity(model, data, {"tail": [steps()]})
    with pytest.raises(RecipeError, match="channels acts on more than one layer; try gptq"):
        sensitivity(model, data, {"middle": [(Step(technique="channels"),)]})
    with pytest.raises(DataError, match="no examples"):
        sensitivity(model, [], {"middle": [steps()]})
    model.aside = nn.Linear(4, 4)  # type: ignore[assignment]
    with pytest.raises(DataError, match="aside is not used when the model runs"):
        sensitivity(model, data, {"aside": [steps()]})
    done = compress_model(model, steps=[{"layers": "middle", "technique": "rtn"}])
    with pytest.raises(ModelError, match="middle is compressed already"):
        sensitivity(done, data, {"words": [steps()]})


def test_a_candidate_sees_what_compressing_would_let_it_see(bag: tuple[Bag, Tensor]) -> None:
    """Also what is heard on the way back."""
    model, data = bag
    step = {"technique": "yaqa", "bits": 3, "group": 0}
    (found,) = sensitivity(model, data, {"middle": [(Step.of(step),)]})["middle"]
    done = compress_model(model, data, steps=[{"layers": "middle", **step}])
    seen, predictions = look(model, {"middle": model.middle}, data, 0)
    d = model.middle.weight.detach() - done.middle.weight.dense()
    given, slopes = seen["middle"].rows.together
    kl = float((given @ d.T * slopes).sum(1).square().sum()) / 2 / predictions
    assert found.kl == pytest.approx(kl, rel=1e-4)


def test_an_option_reads_back_what_it_wrote() -> None:
    option = Option(steps=(*steps(bits=4), *steps(bits=3, group=4)), nbytes=3, error=0.5, kl=0.25)
    assert Option.of(json.loads(json.dumps(option.as_dict()))) == option
