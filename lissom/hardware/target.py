"""Targets: the kinds of hardware that a model can be made for; which of them is here, and is measured.

What is not here is named with its device: `cuda:h200`, `tpu:v5e`, `fpga:xcu250-figd2104-2L-e`. Of that no time is
measured: forms are told from each other by costs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lissom.errors import LissomError, meant
from lissom.hardware.ways import KINDS

MEASURED = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A target by its kind and device; `how` says where its times come from."""

    kind: str
    device: str = ""
    how: str = MEASURED

    @property
    def measured(self) -> bool:
        """Whether it is here."""
        return self.how == MEASURED

    @property
    def compiled(self) -> bool:
        """Whether its compiler is here."""
        return bool(KINDS[self.kind].compiled) and self.how == KINDS[self.kind].compiled

    @property
    def place(self) -> torch.device:
        """Where models are run meanwhile."""
        return torch.device(self.kind if self.measured else "cpu")

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return str(self).replace(":", "-")

    def __str__(self) -> str:
        """As it is asked for."""
        return f"{self.kind}:{self.device}" if self.device else self.kind


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


def target_named(name: str) -> Target:
    """A target by its name: one that is here, or one of which the device is named.

    Raises:
        LissomError: there is none of the name; or it is not here, and no device is named.
    """
    kind, _, device = name.partition(":")
    if kind not in KINDS:
        raise LissomError(f"target: {name!r} is none of {', '.join(nameable())}{meant(name, nameable())}")
    known = KINDS[kind].devices
    if not device and kind not in targets():
        costed = ", ".join(f"{kind}:{one}" for one in known)
        raise LissomError(f"target: {name!r} is not on this machine; name the device to cost it for: {costed}")
    if device and device not in known:
        can = f"known are {', '.join(known)}" if known else f"it has no devices; write {kind}"
        raise LissomError(f"target: {name!r}: nothing is known of {device!r}; {can}{meant(device, known)}")
    return Target(kind=kind, device=device, how=MEASURED if is_here(kind, device) else KINDS[kind].told)


def targets_named(names: str | Sequence[str]) -> list[Target]:
    """Several targets, each of them once.

    Raises:
        LissomError: there is none, or one is named twice or is none.
    """
    found = [target_named(name) for name in ([names] if isinstance(names, str) else names)]
    if not found:
        raise LissomError(f"target: none is named; give some of {', '.join(nameable())}")
    twice = next((one for one in found if found.count(one) > 1), None)
    if twice is not None:
        raise LissomError(f"target: {twice} is named twice; name each target once")
    return found


def nameable() -> tuple[str, ...]:
    """All targets that can be asked for."""
    return *targets(), *(f"{kind.name}:{device}" for kind in KINDS.values() for device in kind.devices)


def is_here(kind: str, device: str) -> bool:
    """Whether a target is on this machine: its GPU, if that is of the name."""
    if kind not in targets():
        return False
    return not device or device in re.split(r"\W+", torch.cuda.get_device_name().lower())


def finish(target: str) -> None:
    """Wait until the target has done what it was told."""
    if target == "cuda":
        torch.cuda.synchronize()
