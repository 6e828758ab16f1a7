"""What is searched over: a module in memory (`module.py`), or a language model on disk (`language.py`).

Both can be compressed, opened and timed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.evaluate import Metric
from lissom.formats import Weight
from lissom.models import weight_of
from lissom.progress import Tell
from lissom.search.bank import Bank, Choice
from lissom.search.forms import CACHE, Steps
from lissom.search.latency import Run
from lissom.search.loads import Loads
from lissom.search.result import Point
from lissom.types import Recipe

LARGE = 300_000_000  # weights of these: each token takes so long that few of them tell as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One compressed model: how many bytes it has, how to compare it, what is timed of it, how to write it.

    `weights` are those of its layers.
    """

    recipe: Recipe
    nbytes: int
    open: Callable[[], nn.Module]
    timed: Callable[[], Run]
    write: Callable[[Path, Mapping[str, Any]], Path]
    language: bool = False
    weights: Callable[[], Mapping[str, Weight]] = dict


class Subject(ABC):
    """A model to be made smaller.

    `units` are the layers that take the same form, by the name of the first; `kinds` say which units do the same work
    in different places; `forms` are the steps of each form of each layer.
    """

    original: nn.Module
    nbytes: int
    weights: int
    units: dict[str, tuple[str, ...]]
    kinds: dict[str, str]
    forms: dict[str, dict[str, Steps]]
    layers: dict[str, nn.Module]
    folder: str | None = None  # where it is, if it is on disk
    rows = False  # whether there are forms with one scale for each row among its forms
    examples = 1  # in the batch that is timed
    share = 1.0
    fastest = math.inf  # milliseconds that the original was seen to take, at best

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of the layers."""
        return {name: weight_of(self.layers[name]).shape for name in self.forms if name != CACHE}

    @property
    @abstractmethod
    def beside(self) -> int:
        """Bytes of what is no matrix of a layer."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for equal weights."""

    @abstractmethod
    def timing(self) -> list[Any]:
        """What is run when it is timed, beside its layers, as JSON."""

    @abstractmethod
    def fill(self, bank: Bank, calibration: Batch, kind: Metric, max_ram: int | None, tell: Tell) -> None:
        """Make what is missing in a bank."""

    @abstractmethod
    def compress(self, recipe: Recipe, calibration: Batch) -> Trial:
        """Compress it by a recipe."""

    def narrower(self, share: float, calibration: Batch) -> Steps:
        """The steps that take channels away, and so much of all multiplications; none where none can be taken."""
        return ()

    @abstractmethod
    def compress_into(self, folder: Path, recipe: Recipe, calibration: Batch, choice: Choice) -> None:
        """Compress it by a recipe into a new folder; the choice says what is of no layer."""

    @abstractmethod
    def reopened(self, folder: Path, recipe: Recipe) -> Trial:
        """What was compressed into a folder, which must stay there."""

    @abstractmethod
    def assemble(self, bank: Bank, choice: Choice, name: str) -> Trial:
        """Put it together from layers that are there."""

    @abstractmethod
    def timed(self) -> Run:
        """What is timed of the original."""

    @abstractmethod
    def loads(self) -> Loads:
        """What each layer is given in what is timed."""

    def run(self, bank: Bank, choice: Choice) -> Run:
        """What is timed of a choice."""
        return self.assemble(bank, choice, "").timed()

    def refused(self, bank: Bank) -> dict[tuple[str, str], str]:
        """The forms of kinds of units that the target does not run as they are, and why."""
        return {}

    @abstractmethod
    def width(self, layer: str) -> int:
        """Bytes of a number of a layer, as it was given."""

    def shallow(self) -> "Subject":
        """What tells of all kinds of layers how long their forms take: a part of it, with `share` of its blocks."""
        return self

    def point(self, name: str, nbytes: int, **figures: Any) -> Point:
        """The figures of a model of so many bytes."""
        return Point(name=name, nbytes=nbytes, bits_per_weight=8 * nbytes / self.weights, **figures)


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
