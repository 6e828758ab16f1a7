"""Training algorithms: ours against their literal definitions, all by the same laws."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.errors import RecipeError
from lissom.recover.optimizers import OPTIMIZERS, AdamW8, Lion, ScheduleFree, Together, adamw8, judging, make
from lissom.recover.schedules import SCHEDULES, rate, scheduled

STEPS = 12


def network(seed: int = 0, width: int = 8) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 2)
    return model


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return x, (x[:, :3].abs() > 0.7).long().argmax(1)


def learn(model: nn.Module, optimizer: Any, steps: int = STEPS) -> list[float]:
    x, y = data()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return [float(optimizer.step(closure).detach()) for _ in range(steps)]


def gradients(model: nn.Module) -> list[Tensor]:
    x, y = data()
    loss = nn.functional.cross_entropy(model(x), y)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_same(model: nn.Module, expected: list[Tensor]) -> None:
    for p, value in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p, value, rtol=1e-4, atol=1e-6)


def put(model: nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(value)


def test_lion_is_its_paper() -> None:
    lr, beta1, beta2, decay = 0.01, 0.9, 0.99, 0.1
    model, twin = network(), network()
    learn(model, Lion(model.parameters(), lr=lr, betas=(beta1, beta2), weight_decay=decay))
    m = [torch.zeros_like(p) for p in twin.parameters()]
    for _ in range(STEPS):
        g = gradients(twin)
        c = [beta1 * a + (1 - beta1) * b for a, b in zip(m, g, strict=True)]
        put(twin, [p - lr * (torch.sign(a) + decay * p) for p, a in zip(twin.parameters(), c, strict=True)])
        m = [beta2 * a + (1 - beta2) * b for a, b in zip(m, g, strict=True)]
    assert_same(model, list(twin.parameters()))


def test_sam_is_its_paper() -> None:
    lr, rho = 0.1, 0.2
    model, twin = network(), network()
    learn(model, make("sam", model.parameters(), lr, base="sgd", rho=rho))
    for _ in range(STEPS):
        before, g = [p.detach().clone() for p in twin.parameters()], gradients(twin)
        norm = math.sqrt(sum(float(one.square().sum()) for one in g))
        put(twin, [p + rho * one / norm for p, one in zip(before, g, strict=True)])
        put(twin, [p - lr * one for p, one in zip(before, gradients(twin), strict=True)])
    assert_same(model, list(twin.parameters()))


def test_schedule_free_is_its_paper() -> None:
    lr, beta1, beta2, eps, decay, warmup = 0.05, 0.9, 0.99, 1e-8, 0.01, 5
    model, twin = network(), network()
    optimizer = ScheduleFree(
        model.parameters(), lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, warmup=warmup
    )
    learn(model, optimizer)
    x = [p.detach().clone() for p in twin.parameters()]
    z, v, total = [p.clone() for p in x], [torch.zeros_like(p) for p in x], 0.0
    for t in range(1, STEPS + 1):
        y = [(1 - beta1) * a + beta1 * b for a, b in zip(z, x, strict=True)]
        put(twin, y)
        g = gradients(twin)
        v = [beta2 * a + (1 - beta2) * b * b for a, b in zip(v, g, strict=True)]
        gamma = lr * math.sqrt(1 - beta2**t) * min(1, t / warmup)
        z = [a - gamma * (b / (c.sqrt() + eps) + decay * d) for a, b, c, d in zip(z, g, v, y, strict=True)]
        total += gamma**2
        x = [(1 - gamma**2 / total) * a + gamma**2 / total * b for a, b in zip(x, z, strict=True)]
    assert_same(model, [(1 - beta1) * a + beta1 * b for a, b in zip(z, x, strict=True)])
    with judging(optimizer):
        assert_same(model, x)
        with pytest.raises(RecipeError, match="averages are in place"):
            optimizer.step()
    assert_same(model, [(1 - beta1) * a + beta1 * b for a, b in zip(z, x, strict=True)])


def test_moments_of_eight_bits_lead_where_adamw_leads() -> None:
    wide = adamw8.FEW // 4 + 8
    model, twin = network(width=wide), network(width=wide)
    knobs: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    ours, theirs = AdamW8(model.parameters(), **knobs), torch.optim.AdamW(twin.parameters(), **knobs)
    ends = [learn(model, ours, 40)[-1], learn(twin, theirs, 40)[-1]]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)
    coded = ours.state[model[0].weight]["m"]
    assert coded[0].dtype == torch.uint8
    assert sum(part.nbytes for part in coded) < 0.28 * model[0].weight.nbytes
    few, twin = network(), network()  # what is small has moments of float32
    learn(few, AdamW8(few.parameters(), **knobs))
    learn(twin, torch.optim.AdamW(twin.parameters(), **knobs))
    assert_same(few, list(twin.parameters()))


def test_eight_bits_are_the_nearest_of_their_numbers() -> None:
    for signed in (True, False):
        table = torch.tensor(adamw8.levels(signed))
        assert len(set(table.tolist())) == 256
        x = torch.randn(1000, generator=torch.Generator().manual_seed(2)) ** 3
        x = x if signed else x.abs()
        codes, scale = adamw8.written(x, signed=signed)
        found = adamw8.read(codes, scale, 1000, signed=signed)
        for first in range(0, 1000, adamw8.BLOCK):
            block = x[first : first + adamw8.BLOCK]
            most = block.abs().max()
            expected = torch.stack([table[(table * most - value).abs().argmin()] * most for value in block])
            away, near = (found[first : first + adamw8.BLOCK] - block).abs(), (expected - block).abs()
            assert torch.all(away <= near + 1e-6 * most)
        assert torch.equal(
            adamw8.read(*adamw8.written(torch.zeros(5), signed=signed), 5, signed=signed), torch.zeros(5)
        )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_learn_and_go_on_from_where_they_were(name: str) -> None:
    model = network()
    optimizer = make(name, model.parameters())
    losses = learn(model, optimizer, 40)
    assert losses[-1] < losses[0]
    copied = copy.deepcopy(model)
    other = make(name, copied.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert learn(model, optimizer, 5) == learn(copied, other, 5)
    assert_same(copied, list(model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_schedule_reaches_all_rates(name: str) -> None:
    model = network()
    optimizer = make(name, model.parameters(), 0.01)
    schedule = scheduled(optimizer, "linear", steps=4)
    before = [p.detach().clone() for p in model.parameters()]
    learn(model, optimizer, 1)
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    for _ in range(4):
        schedule.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    after = [p.detach().clone() for p in model.parameters()]
    if name != "schedulefree":  # whose parameters are on the way to an average
        learn(model, optimizer, 1)
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), after, strict=True))


def test_muon_leaves_to_adamw_what_is_no_matrix_or_is_kept_apart() -> None:
    model = network()
    both = make("muon", model.parameters(), apart=[model[2].weight])
    assert isinstance(both, Together)
    matrices, others = both.parts
    assert [p is model[0].weight for group in matrices.param_groups for p in group["params"]] == [True]
    assert len([p for group in others.param_groups for p in group["params"]]) == 3
    assert isinstance(make("muon", [model[0].weight]), torch.optim.Muon)
    assert isinstance(make("muon", [model[0].bias]), torch.optim.AdamW)


def test_what_cannot_be_is_refused() -> None:
    model = network()
    with pytest.raises(RecipeError, match=r"'adamm' is none of .*did you mean 'adam'"):
        make("adamm", model.parameters())
    with pytest.raises(RecipeError, match="lion takes lr, betas, weight_decay, not momentum"):
        make("lion", model.parameters(), momentum=0.9)
    with pytest.raises(RecipeError, match=r"sgd.*learning rate"):
        make("sgd", model.parameters(), -1.0)
    with pytest.raises(RecipeError, match="rho=0"):
        make("sam", model.parameters(), rho=0)
    with pytest.raises(RecipeError, match="nothing to move"):
        make("adam", [nn.Parameter(torch.ones(2), requires_grad=False)])
    with pytest.raises(RecipeError, match="closure"):
        make("sam", model.parameters()).step()


def test_schedules_go_where_they_say() -> None:
    assert [rate("linear", t, 6, 2) for t in range(7)] == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25, 0])
    assert [rate("cosine", t, 4) for t in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    assert [rate("wsd", t, 10) for t in (0, 7, 8, 9, 10)] == pytest.approx([1, 1, 1, 0.5, 0])
    assert rate("constant", 3, 4, floor=0.5) == 1
    assert rate("cosine", 4, 4, floor=0.1) == pytest.approx(0.1)
    for name in SCHEDULES:
        assert rate(name, 0, 5) == 1
    with pytest.raises(RecipeError, match=r"'cosin' is none of .*did you mean 'cosine'"):
        rate("cosin", 0, 5)
    with pytest.raises(RecipeError, match="warmup=7"):
        scheduled(make("sgd", network().parameters()), "linear", steps=5, warmup=7)
