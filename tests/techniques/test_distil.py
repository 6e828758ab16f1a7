"""Distillation against its literal definition, and against deliberately wrong versions of itself."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.errors import RecipeError
from lissom.formats import Dense, Signs, matrix_of, unfreeze, wrap
from lissom.statistics import Gram, Moments
from lissom.techniques.quantize.nanoquant import nanoquant
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.quantize.ternary import ternary
from lissom.techniques.quantize.tuned import LOSSES, Lots, mean_loss
from lissom.techniques.recover import distil as module
from lissom.techniques.recover.distil import SLOWER, distil, divided, movable
from lissom.techniques.share.kmeans import kmeans

LR, CLIP, LOTS, EPOCHS = 0.02, 0.009, 4, 3
KINDS: dict[str, Any] = {
    "integers": lambda w: rtn(w, Moments.blank(16), bits=3),
    "codebooks": lambda w: kmeans(w, Moments.blank(16), bits=2, rows=0),
    "three values": lambda w: ternary(w, Gram.blank(16)),
    "signs": lambda w: nanoquant(w, Gram.blank(16), bits=6.0, iterations=10),
}


def network(kind: str = "integers") -> tuple[Any, Any]:
    """A trainable student of one compressed layer, one norm and a layer that stays as it is; and its teacher."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 5, bias=False))
    student = nn.Sequential(wrap(teacher[0], KINDS[kind](Dense(values=matrix_of(teacher[0])))), nn.LayerNorm(8))
    student.append(nn.Linear(8, 5, bias=False))
    student[2].load_state_dict(teacher[2].state_dict())
    return unfreeze(student), teacher


def lots(student: nn.Module, teacher: nn.Module, count: int = LOTS) -> Lots:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(20, 16, generator=generator) * torch.logspace(-1, 1, 16) for _ in range(count)]
    return [(lambda x=x: student(x), teacher(x).detach()) for x in inputs]  # type: ignore[misc]


def oracle(
    *,
    reverse: bool = False,
    relative: bool = True,
    cut: bool = True,
    falling: bool = True,
    unbiased: bool = True,
    vectors: bool = True,
    apart: bool = True,
    best: bool = True,
) -> dict[str, Tensor]:
    """Every step by hand; the arguments make it deliberately wrong."""
    student, teacher = network()
    data, grid, generator = lots(student, teacher), student[0].matrix, torch.Generator().manual_seed(0)
    units = {grid.latent: grid.scale.abs().expand(-1, 16), grid.log_growth: torch.ones(())}
    if vectors:
        units |= {p: p.detach().square().mean().sqrt() for p in (student[0].bias, student[1].weight)}
        units |= {student[1].bias: torch.ones(())}
    shuffled = torch.randperm(LOTS, generator=generator)
    learning = shuffled[1:] if apart else shuffled
    order = torch.cat([learning[torch.randperm(len(learning), generator=generator)] for _ in range(EPOCHS)])
    judge, states = data[int(shuffled[0])], []
    first, second = ({p: torch.zeros_like(p) for p in units} for _ in range(2))
    for t, place in enumerate(order.tolist()):
        p, q = (z.log_softmax(-1) for z in (data[place][1], data[place][0]()))
        value = ((q.exp() * (q - p)) if reverse else (p.exp() * (p - q))).sum(-1).mean()
        found = zip(units, torch.autograd.grad(value, list(units)), strict=True)
        g = {p: gradient * (units[p] if relative else 1) for p, gradient in found}
        norm = math.sqrt(sum(float(part.square().sum()) for part in g.values()))
        rate = LR * ((1 + math.cos(math.pi * t / len(order))) / 2 if falling else 1)
        for p in units:
            part = g[p] * (min(1, CLIP / norm) if cut else 1)
            first[p], second[p] = 0.9 * first[p] + 0.1 * part, 0.99 * second[p] + 0.01 * part**2
            m, v = (first[p] / (1 - 0.9 ** (t + 1)), second[p] / (1 - 0.99 ** (t + 1)))
            m, v = (m, v) if unbiased else (first[p], second[p])
            p.data -= rate * (units[p] if relative else 1) * m / (v.sqrt() + 1e-8)
        if (t + 1) % len(learning) == 0:
            state = {name: p.detach().clone() for name, p in student.named_parameters()}
            states.append((mean_loss([judge], LOSSES["kl"]), state))
    return (min(states, key=lambda pair: pair[0]) if best else states[-1])[1]


def run(kind: str = "integers", **knobs: Any) -> dict[str, Tensor]:
    student, teacher = network(kind)
    given: dict[str, Any] = {"epochs": EPOCHS, "lr": LR, "clip": CLIP, "bf16": False} | knobs
    distil(student, lots(student, teacher), **given)
    return {name: p.detach() for name, p in student.named_parameters()}


def test_every_step_is_that_of_adam_in_units_of_each_parameter() -> None:
    torch.testing.assert_close(run(), oracle(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"reverse": True}, id="the divergence the other way round"),
        pytest.param({"relative": False}, id="steps that do not know the grid"),
        pytest.param({"cut": False}, id="gradients that are not cut"),
        pytest.param({"falling": False}, id="a rate that does not fall"),
        pytest.param({"unbiased": False}, id="moments that still lean towards zero"),
        pytest.param({"vectors": False}, id="norms and biases left alone"),
        pytest.param({"apart": False}, id="learned from what it is judged by"),
        pytest.param({"best": False}, id="the last state in place of the best"),
    ],
)
def test_wrong_versions_are_told_apart(wrong: dict[str, bool]) -> None:
    found, expected = run(), oracle(**wrong)
    assert not all(torch.allclose(found[name], expected[name], atol=1e-4) for name in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bf16", [False, True])
def test_whatever_the_format_the_predictions_come_closer(kind: str, bf16: bool) -> None:
    student, teacher = network(kind)
    data = lots(student, teacher, 12)
    before = mean_loss(data, LOSSES["kl"])
    distil(student, data, epochs=10, bf16=bf16)
    assert mean_loss(data, LOSSES["kl"]) < 0.8 * before


def test_what_no_step_has_compressed_stays() -> None:
    student, _ = network()
    assert torch.equal(run()["2.weight"], student[2].weight)


def test_a_start_that_was_better_is_kept() -> None:
    student, _ = network()
    expected = dict(student.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in run(lr=100.0).items())


def test_where_a_rate_leads_nowhere_a_quarter_of_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = run(lr=LR)
    found = run(lr=SLOWER * LR)
    assert all(torch.equal(found[name], p) for name, p in slower.items())
    monkeypatch.setattr(module, "SLOWER", 1)  # nowhere indeed
    expected = dict(network()[0].named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in run(lr=SLOWER * LR).items())


def test_the_best_of_all_passes_is_kept_not_the_last() -> None:
    student, teacher = network()
    data = lots(student, teacher)
    judging, _ = divided(LOTS, 0.05, torch.Generator().manual_seed(0))
    found = []
    for epochs in (1, 30):
        student, teacher = network()
        data = lots(student, teacher)
        distil(student, data, epochs=epochs, lr=0.3, bf16=False)
        found.append(float(mean_loss([data[place] for place in judging.tolist()], LOSSES["kl"])))
    assert found[1] < found[0]


def test_one_lot_is_judged_by_and_learned_from() -> None:
    student, teacher = network()
    data = lots(student, teacher, 1)
    before = mean_loss(data, LOSSES["kl"])
    distil(student, data, epochs=20, bf16=False)
    assert mean_loss(data, LOSSES["kl"]) < before


def test_the_squared_error_can_be_the_loss() -> None:
    student, teacher = network("signs")
    data = lots(student, teacher)
    before = mean_loss(data, LOSSES["mse"])
    distil(student, data, epochs=20, loss="mse")
    assert mean_loss(data, LOSSES["mse"]) < before


@pytest.mark.parametrize("held", [0.0, 0.05, 0.5, 0.99])
def test_some_lots_are_judged_by_and_some_learned_from(held: float) -> None:
    judging, learning = divided(10, held, torch.Generator().manual_seed(0))
    assert len(judging) == {0.0: 1, 0.05: 1, 0.5: 5, 0.99: 9}[held]
    assert sorted([*judging.tolist(), *learning.tolist()]) == list(range(10))


def test_frozen_vectors_stay() -> None:
    student, _ = network()
    student[1].requires_grad_(False)
    assert not set(student[1].parameters()) & set(movable(student))


def test_signs_and_scales_both_move() -> None:
    student, _ = network("signs")
    before: Signs = student[0].weight
    found = run("signs", epochs=60, lr=0.02)
    assert not torch.equal(found["0.matrix.left"] >= 0, before.left.codes() > 0)
    assert found["0.matrix.log_growth.rows"].abs().max() > 0


def test_a_model_that_no_step_has_compressed_has_nothing_to_learn() -> None:
    teacher = network()[1]
    with pytest.raises(RecipeError, match="nothing is compressed yet; put a step before it that does"):
        distil(teacher, lots(teacher, teacher))


def test_without_data_there_is_nothing_to_learn_from() -> None:
    with pytest.raises(RecipeError, match="learned from data; give data"):
        distil(network()[0], [])


def test_a_number_for_each_example_is_no_prediction() -> None:
    student, teacher = network()
    single = [(lambda run=run: run().sum(-1), wanted.sum(-1)) for run, wanted in lots(student, teacher)]  # type: ignore[misc]
    with pytest.raises(RecipeError, match="a number for each example is none; take loss='mse'"):
        distil(student, single)
    far = mean_loss(single, LOSSES["mse"])
    distil(student, single, loss="mse", epochs=EPOCHS)
    assert mean_loss(single, LOSSES["mse"]) < far
