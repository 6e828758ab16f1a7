"""The loop: what it leaves, how it goes on, when it ends."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.errors import DataError, RecipeError
from lissom.recover.feed import feed
from lissom.recover.learner import Learner
from lissom.recover.lessons import Labels, Original
from lissom.recover.loop import Curve, Until, learn
from lissom.recover.model import begin_near, recover_model
from lissom.recover.moving import moving
from lissom.recover.optimizers import OPTIMIZERS, make
from lissom.recover.parallel.laid import Laid
from lissom.recover.training import Training


def task(norm: bool = False) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    """A network that has learned something, and the data that it learned from."""
    x = torch.randn(400, 12)
    y = x[:, :4].argmax(1)
    model = nn.Sequential(nn.Linear(12, 32), *([nn.BatchNorm1d(32)] * norm), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), (x, y)


def two_bits(model: nn.Module, data: Any) -> nn.Module:
    return lissom.quantize_model(model, data, bits=2)


class Shelf:
    """A keeper in memory, which breaks off after so many looks."""

    def __init__(self, most: int = 10**9) -> None:
        self.held: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        self.most = most

    def keep(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.held.append((copy.deepcopy(dict(record)), {name: t.clone() for name, t in tensors.items()}))
        if len(self.held) == self.most:
            raise KeyboardInterrupt

    def last(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        return self.held[-1] if self.held else None


def learner(model: nn.Module, original: nn.Module, optimizer: str = "adamw", **how: Any) -> Learner:
    student = copy.deepcopy(model)
    begin_near(student, original)
    moves = moving(student, seed=3)
    training = Training(optimizer=optimizer, **how)
    made = make(optimizer, moves.phi.values(), training.rate)
    return Learner(laid=Laid(model=student), moving=moves, optimizer=made, lesson=Original(original), training=training)


def figures(curve: Curve) -> list[tuple[int, int, float | None, float]]:
    return [(look.step, look.seen, look.learned, look.held) for look in curve.looks]


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS])
def test_every_algorithm_recovers_what_two_bits_have_cost(optimizer: str) -> None:
    original, data = task()
    model = two_bits(original, data)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = recover_model(model, data, Training(optimizer=optimizer, batch=20, looks=8), original=original)
    curve = found.curve
    # an orthogonal step moves all directions of matrices as small as these alike
    assert curve.after.held < (0.9 if optimizer == "muon" else 0.8) * curve.before.held
    assert curve.after.held == min(look.held for look in curve.looks)
    assert [look.step for look in curve.looks] == sorted({look.step for look in curve.looks})
    assert curve.looks[-1].seen == 20 * curve.looks[-1].step == 20 * 4 * 19
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    held = feed(data, batch=20).held
    again = sum(float(Original(original).loss(found.model, lot).detach()) * len(lot.numbers) for lot in held)  # type: ignore[arg-type]
    assert again / sum(len(lot.numbers) for lot in held) == pytest.approx(curve.after.held, rel=1e-4)  # type: ignore[arg-type]
    levels = found.model[0].weight.dense().unflatten(1, (-1, 12)).flatten(0, 1)  # type: ignore[index, union-attr, operator]
    assert all(len(row.unique()) <= 4 for row in levels)


@pytest.mark.parametrize("optimizer", ["adamw", "schedulefree", "muon", "sam", "adamw8"])
@pytest.mark.parametrize("how", [{}, {"ema": 0.9}])
def test_who_is_stopped_goes_on_to_the_same_bits(optimizer: str, how: dict[str, Any]) -> None:
    original, data = task(norm=True)
    model, until = two_bits(original, data), Until(steps=24)
    whole = learner(model, original, optimizer, looks=6, **how)
    curve = learn(whole, feed(data, batch=20), until, keeper=Shelf())
    shelf = Shelf(most=3)
    with pytest.raises(KeyboardInterrupt):
        learn(learner(model, original, optimizer, looks=6, **how), feed(data, batch=20), until, keeper=shelf)
    shelf.most = 10**9
    later = learner(model, original, optimizer, looks=6, **how)
    other = learn(later, feed(data, batch=20), until, keeper=shelf)
    assert figures(other) == figures(curve)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(later.model.state_dict()[name], tensor), name


def test_accumulated_gradients_are_those_of_the_batch() -> None:
    original, data = task()
    model = two_bits(original, data)
    lot = next(feed(data, batch=30).lots(0))
    found = []
    for parts in (1, 4):
        one = learner(model, original, accumulate=parts, clip=0.0, bf16=False)
        loss = one.take_gradients(lot)
        found.append([loss, *(phi.grad for phi in one.moving.phi.values())])
    for whole, summed in zip(*found, strict=True):
        assert torch.allclose(whole, summed, rtol=1e-4, atol=1e-7)  # type: ignore[arg-type]


def test_activations_computed_again_give_the_same_gradients() -> None:
    original, data = task()
    model = two_bits(original, data)
    lot = next(feed(data, batch=30).lots(0))
    found = []
    for again in (False, True):
        one = learner(model, original, checkpointing=again)
        with one.learning():
            one.take_gradients(lot)
        found.append([phi.grad for phi in one.moving.phi.values()])
        assert "forward" not in vars(one.model[0])  # type: ignore[index]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # type: ignore[arg-type]
    with pytest.raises(lissom.ModelError, match=r"no torch\.nn\.Sequential or ModuleList of blocks"):
        recover_model(model[0], torch.randn(9, 12), Training(checkpointing=True), original=original[0])  # type: ignore[index]


def test_gradients_are_cut_together() -> None:
    original, data = task()
    one = learner(two_bits(original, data), original, clip=0.01)
    one.take_gradients(next(feed(data, batch=30).lots(0)))
    norms = torch.stack([phi.grad.norm() for phi in one.moving.phi.values() if phi.grad is not None])
    assert float(norms.norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_average_is_what_is_looked_at() -> None:
    original, data = task()
    one = learner(two_bits(original, data), original, ema=0.9)
    lots = feed(data, batch=20).lots(0)
    expected = one.moving.copied()
    for step in range(1, 6):
        one.step(next(lots), 0.1, step)
        stays = min(0.9, step / (step + 9))
        for p, phi in one.moving.phi.items():
            expected[p] = stays * expected[p] + (1 - stays) * phi.detach()
    for p, average in one.best().items():
        assert torch.allclose(average, expected[p], rtol=1e-4, atol=1e-7)


def test_batch_norms_learn_the_statistics_of_what_is_compressed_unless_they_may_not() -> None:
    original, data = task(norm=True)
    model = two_bits(original, data)
    for norms in (True, False):
        found = recover_model(model, data, Training(norms=norms, batch=20, epochs=1), original=original).model
        moved = not torch.equal(found[1].running_mean, model[1].running_mean)  # type: ignore[index, union-attr, arg-type]
        assert moved == norms


@pytest.mark.parametrize(("bits", "shift", "learn"), [(8, 0.0, False), (8, 3.0, True), (2, 0.0, False)])
def test_batch_norms_learn_by_default_where_a_batch_knows_more_than_they_remember(
    bits: int, shift: float, learn: bool
) -> None:
    original, (x, y) = task(norm=True)
    model = lissom.quantize_model(original, (x, y), bits=bits)
    model[1].running_mean += shift  # type: ignore[index, operator]
    if bits == 2:
        x, y = x[:2], y[:2]  # one example to judge by has no spread
    found = recover_model(model, (x, y), Training(batch=20, steps=2), original=original).model
    moved = not torch.equal(found[1].running_mean, model[1].running_mean)  # type: ignore[index, union-attr, arg-type]
    assert moved == learn


def test_it_ends_when_nothing_gets_better_or_when_it_is_enough_or_when_it_is_time() -> None:
    original, data = task()
    model = two_bits(original, data)
    stuck = recover_model(model, data, Training(steps=40, looks=20, patience=3, lr=1e-12, batch=20), original=original)
    assert len(stuck.curve.looks) < 12
    asked: list[int] = []

    def second(model: nn.Module) -> bool:
        asked.append(1)
        return len(asked) == 2

    one = learner(model, original, looks=20)
    curve = learn(one, feed(data, batch=20), Until(steps=80), enough=second)
    assert len(curve.looks) < 20
    assert curve.best == len(curve.looks) - 1
    timed = learn(learner(model, original, looks=4), feed(data, batch=20), Until(seconds=0.5))
    assert timed.looks[-1].seconds >= 0.5


def test_what_leads_nowhere_is_told() -> None:
    original, data = task()
    model = two_bits(original, data)
    with pytest.raises(DataError, match=r"the loss has become (nan|inf)"):
        recover_model(model, (data[0] * float("nan"), data[1]), original=original)
    with pytest.raises(DataError, match="no labels"):
        recover_model(model, data[0])
    with pytest.raises(RecipeError, match="top_k, loss and temperature are of an original"):
        recover_model(model, data, Training(top_k=4))
    with pytest.raises(lissom.ModelError, match="the original has no layer '0'"):
        recover_model(model, data, original=nn.Sequential(nn.Identity(), nn.Linear(12, 4)))
    with pytest.raises(RecipeError, match=r"'adamq' is none of .*; did you mean 'adam'"):
        Training(optimizer="adamq")
    with pytest.raises(RecipeError, match="epochs and steps both say how long"):
        Training(epochs=1, steps=2)
    with pytest.raises(RecipeError, match="leave out top_k"):
        Training(top_k=4, loss="mse")
    with pytest.raises(DataError, match="how long a pass"):
        recover_model(model, (lot for lot in [data] * 3), original=original)
    with pytest.raises(DataError, match="one tensor"):
        recover_model(model, [data] * 3, Training(top_k=2), original=original)


def test_labels_are_learned_without_an_original() -> None:
    original, data = task()
    found = recover_model(two_bits(original, data), data, Training(batch=20, epochs=2))
    assert found.curve.after.held < found.curve.before.held
    held = feed(data, batch=20).held[0]
    loss = float(Labels().loss(found.model, held).detach())
    assert loss == pytest.approx(found.curve.after.held, rel=1e-4)
