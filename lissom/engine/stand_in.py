"""A module that stands in for another, and has all attributes of it."""

from collections.abc import Callable
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


def stand_in(model: nn.Module, make: Callable[[nn.Module], StandIn | None]) -> nn.Module:
    """What `make` makes of a model, or else the model with what it makes of the modules in it, in their places."""
    if isinstance(model, StandIn):
        return model
    made = make(model)
    if made is not None:
        return made
    for name, part in list(model.named_children()):
        setattr(model, name, stand_in(part, make))
    return model
