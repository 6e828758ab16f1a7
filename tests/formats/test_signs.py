"""A product of signs: its bytes, its layer, its trainable."""

from typing import Any

import torch
from torch import nn

from lissom.formats import Signs, freeze, unfreeze, wrap
from lissom.formats import signs as file


def made(o: int = 40, i: int = 64, r: int = 12) -> Signs:
    left, right = torch.rand(r, o) < 0.5, torch.rand(r, i) < 0.5
    return Signs.of(left, right, *(torch.rand(n) + 0.5 for n in (o, r, i)))


def test_every_byte_is_counted() -> None:
    weight = made(40, 64, 12)
    assert weight.nbytes == 12 * (64 + 64) // 8 + 2 * (40 + 12 + 64)  # rows of 40 signs fill two words
    assert weight.rank == 12


def test_a_layer_never_forms_the_matrix(monkeypatch: Any) -> None:
    weight, x = made(), torch.randn(3, 64)
    expected = x @ weight.dense().T
    monkeypatch.setattr(file, "product", None)
    torch.testing.assert_close(wrap(nn.Linear(64, 40, bias=False), weight)(x), expected, rtol=1e-4, atol=1e-4)


def test_a_layer_of_signs_can_be_exported() -> None:
    model = nn.Sequential(wrap(nn.Linear(64, 40), made()), wrap(nn.Linear(40, 8), made(8, 40)))
    x = torch.randn(5, 64)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(torch.cat([x, x])), model(torch.cat([x, x])))


def test_training_turns_signs_and_moves_every_scale() -> None:
    weight, goal = made(24, 32, 30), torch.randn(24, 32)
    model: Any = nn.Sequential(wrap(nn.Linear(32, 24, bias=False), weight, trainable=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, losses = torch.eye(32), []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(x).T - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    learned = model[0].weight
    assert {name for name, part in learned.parts().items() if torch.equal(part, weight.parts()[name])} == set()
    before = model[0].matrix().detach()
    for change in (freeze, unfreeze, freeze):
        change(model)
        assert torch.equal(model[0].matrix(), before)
