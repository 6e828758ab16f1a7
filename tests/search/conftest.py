"""A small classifier that has learned something, and its examples."""

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="package")
def examples() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(11)
    y = torch.randint(4, (2400,), generator=random)
    centres = torch.randn(4, 32, generator=random) * 2
    return centres[y] + torch.randn(2400, 32, generator=random), y


@pytest.fixture(scope="package")
def classifier(examples: tuple[Tensor, Tensor]) -> nn.Module:
    x, y = examples
    with torch.random.fork_rng():
        torch.manual_seed(12)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()
