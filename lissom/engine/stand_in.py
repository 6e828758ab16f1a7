"""A module that stands in for another, and has all attributes of it."""

from typing import Any

from torch import nn


class StandIn(nn.Module):
    """In the place of `model`; what it lacks itself is asked of that."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        own = super().__getattr__
        try:
            return own(name)
        except AttributeError:
            return getattr(own("model"), name)
