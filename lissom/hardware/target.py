"""Targets: the kinds of hardware on which a model can be run and measured here."""

import torch

from lissom.errors import LissomError


def targets() -> tuple[str, ...]:
    """The targets of this machine."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def check_target(target: str) -> torch.device:
    """The device of a target.

    Raises:
        LissomError: this machine has none such.
    """
    if target not in targets():
        raise LissomError(f"target: {target!r} is not on this machine; possible here: {', '.join(targets())}")
    return torch.device(target)


def finish(target: str) -> None:
    """Wait until the target has done what it was told."""
    if target == "cuda":
        torch.cuda.synchronize()
