"""What is being done, told while it is done: the stage, how far it has come, and of a search the frontier so far."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal[
    "read",  # a model and its data are opened
    "compress",  # parts of a model, or whole candidates, by recipes
    "sensitivity",  # what candidates for layers would cost is foreseen
    "calibrate",  # layers are made in all their forms
    "latency",  # what each form takes is measured in the model
    "choose",  # choices are compared with the original
    "steps",  # the model is timed with and without each step of a choice
    "recover",  # a choice learns to say again what the original says
    "time",  # candidates are timed beside the original
    "certify",  # candidates are tested on examples of their own
    "write",  # the result and its report are written
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """A candidate that no other beats, as far as it is known.

    `drop` is a fraction, on the data for choosing. `cost` is what was asked to be small, as a ratio to the original's;
    None before it is timed. `verdict` is empty before there is a certificate.
    """

    name: str
    nbytes: int
    drop: float
    cost: float | None = None
    verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One event; as a string it is its text, so that `progress=print` tells all of them.

    `done` counts what is finished in the stage, `total` what there is to do there; None where it is not known
    beforehand. `frontier`, the cheapest first, is there only where it has changed.
    """

    stage: Stage
    text: str
    done: int | None = None
    total: int | None = None
    frontier: tuple[FrontierPoint, ...] | None = None

    def __str__(self) -> str:
        return self.text


Tell = Callable[[Progress], None]  # whoever wants to know


def quiet(event: Progress) -> None:
    """Tell nobody."""
