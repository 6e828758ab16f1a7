"""Local steps: against their literal definition, on threads that speak over gloo."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lissom.errors import ModelError, RecipeError
from lissom.recover.parallel.local import LocalSteps

N, LR = 2, 0.2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))


def data(rank: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(3))
    return x[rank::N], (x @ torch.linspace(-1, 1, 64).view(16, 4)).argmax(1)[rank::N]


def learn(model: nn.Module, rank: int, steps: int, after: Any = lambda: None) -> list[float]:
    (x, y), losses = data(rank), []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p.data.sub_(g, alpha=LR)
        after()
        losses.append(float(loss.detach()))
    return losses


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_is_its_paper(together: Any) -> None:
    every, lr, momentum, meetings = 3, 0.7, 0.9, 4
    models = [network() for _ in range(N)]

    def act(group: dist.ProcessGroup) -> None:
        model = models[group.rank()]
        local = LocalSteps(model, group, every=every, kind=None, lr=lr, momentum=momentum)
        learn(model, group.rank(), every * meetings, local.step)

    together(N, act)
    met = vector(network())
    speed = torch.zeros_like(met)
    for _ in range(meetings):
        ends = []
        for rank in range(N):
            one = network()
            nn.utils.vector_to_parameters(met.clone(), one.parameters())
            learn(one, rank, every)
            ends.append(vector(one))
        delta = met - torch.stack(ends).mean(0)
        speed = momentum * speed + delta
        met = met - lr * (delta + momentum * speed)
    for model in models:
        assert torch.allclose(vector(model), met, rtol=1e-4, atol=1e-5)


def test_it_learns_as_well_and_says_little(together: Any) -> None:
    found: dict[str | None, tuple[float, float]] = {}
    for kind in (None, "int4", "sign"):
        models = [network() for _ in range(N)]
        with torch.no_grad():
            models[1][0].weight.add_(1.0)  # the first one's count

        def act(group: dist.ProcessGroup, models: list[Any] = models, kind: str | None = kind) -> tuple[float, float]:
            knobs = {} if kind is None else {"group": 64}
            local = LocalSteps(models[group.rank()], group, every=10, kind=kind, **knobs)  # type: ignore[arg-type]
            losses = learn(models[group.rank()], group.rank(), 80, local.step)
            return losses[-1], local.meter.ratio

        ends = together(N, act)
        assert torch.equal(vector(models[0]), vector(models[1]))
        found[kind] = sum(loss for loss, _ in ends) / N, ends[0][1]
    assert found[None][1] == pytest.approx(10)
    assert found["int4"][1] > 10 * 7
    assert found["int4"][0] == pytest.approx(found[None][0], rel=0.1)
    assert found["sign"][1] > 10 * 24
    assert found["sign"][0] < 1.0


def test_what_cannot_be_is_refused(together: Any) -> None:
    def act(group: dist.ProcessGroup) -> None:
        for knobs in ({"every": 0}, {"momentum": 1.0}, {"kind": "powersgd"}, {"kind": "int4", "rank": 3}):
            with pytest.raises(RecipeError, match=str([*knobs][-1]) if "kind" not in knobs else "gradients"):
                LocalSteps(network(), group, **knobs)  # type: ignore[arg-type]
        still = copy.deepcopy(network()).requires_grad_(False)
        with pytest.raises(ModelError, match="no parameter of Sequential"):
            LocalSteps(still, group)

    together(1, act)
