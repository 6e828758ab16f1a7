"""Where training stands, as JSON and tensors."""

import json

import pytest
import torch
from torch import nn

from lissom.recover.optimizers import OPTIMIZERS, make
from lissom.recover.state import packed, unpacked


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_the_state_of_every_optimizer_comes_back(name: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = make(name, model.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    tensors: dict[str, torch.Tensor] = {}
    written = json.loads(json.dumps(packed(optimizer.state_dict(), tensors)))
    found = unpacked(written, tensors)
    assert same(found, optimizer.state_dict())
    twin = make(name, nn.Linear(3, 2).parameters())
    twin.load_state_dict(found)
    assert same(twin.state_dict(), optimizer.state_dict())


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(TypeError, match=r"here 1 is a set"):
        packed({"here": [1, {2}]}, {})
