"""What the step of an optimizer is given to compute the gradients anew."""

from collections.abc import Callable
from typing import Any

import torch

Closure = Callable[[], Any]


def called(closure: Closure | None) -> Any:
    """The loss that it computes, and with it the gradients; None where there is none."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
