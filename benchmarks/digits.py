"""An MLP of 64-128-64-10 on scikit-learn's digits: trained in seconds, on the 797 that come first."""

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from subjects import Subject, module
from torch import Tensor, nn

from lissom.evaluate import metric

TRAINED, EPOCHS = 797, 60


def images() -> tuple[Tensor, Tensor]:
    """All digits, from 0 to 1, and what they are."""
    pixels, classes = load_digits(return_X_y=True)
    return torch.from_numpy(pixels / 16).float(), torch.from_numpy(classes)


def trained(x: Tensor, y: Tensor, seed: int = 0) -> nn.Module:
    """A network that has learned them."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(EPOCHS):
        for lot in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[lot]), y[lot]).backward()
            optimizer.step()
    return model.eval()


def digits(shared: Path) -> Subject:
    """The network, and the thousand digits that it has not seen."""
    x, y = images()
    return module("digits MLP", trained(x[:TRAINED], y[:TRAINED]), (x[TRAINED:], y[TRAINED:]), metric("accuracy"))
