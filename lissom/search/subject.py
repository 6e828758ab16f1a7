"""What is searched over: a module in memory, or a language model on disk. Both can be compressed, opened and timed."""

import copy
import dataclasses
import math
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lissom.artifact import annotate, compress_checkpoint, open_folder, read_manifest, save
from lissom.artifact.manifest import building
from lissom.artifact.module import stored_state
from lissom.calibrate import Batch, call
from lissom.calibrate.data import device_of, each
from lissom.compress import compress_model
from lissom.engine.bench import engine, once
from lissom.engine.lower import lower
from lissom.estimate import Estimate
from lissom.formats import freeze
from lissom.hardware.bench import Answer
from lissom.models import Checkpoint
from lissom.search.candidates import for_language_model, for_module
from lissom.search.result import Point
from lissom.types import Recipe

TIMED = 16  # examples of the batch whose forward pass is timed
PROMPT, WRITTEN = 64, 16  # tokens of the answer that is timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One compressed model: how many bytes it has, how to compare it, what is timed of it, how to write it."""

    recipe: Recipe
    nbytes: int
    open: Callable[[], nn.Module]
    timed: Callable[[Batch], Callable[[], object]]
    write: Callable[[Path, Mapping[str, Any]], Path]


class Subject(ABC):
    """A model to be made smaller."""

    original: nn.Module
    nbytes: int
    weights: int

    @abstractmethod
    def recipes(self) -> list[Recipe]:
        """The candidates for it."""

    @abstractmethod
    def compress(self, recipe: Recipe, calibration: Batch) -> Trial:
        """Compress it."""

    @abstractmethod
    def timed(self, examples: Batch) -> Callable[[], object]:
        """What is timed of the original."""

    def point(self, name: str, nbytes: int, latency: Estimate, quality: Estimate, drop: Estimate) -> Point:
        """The figures of a model of so many bytes."""
        bits = 8 * nbytes / self.weights
        return Point(name=name, nbytes=nbytes, bits_per_weight=bits, latency=latency, quality=quality, drop=drop)


class ModuleSubject(Subject):
    """Any module; it stays as and where it is, and a copy is measured in the place of the target."""

    def __init__(self, model: nn.Module, example: Batch, place: torch.device) -> None:
        self.model = model if device_of(model).type == place.type else copy.deepcopy(model).to(place)
        self.example = example
        self.original = copy.deepcopy(self.model).eval()
        self.nbytes = size(stored_state(self.original))
        self.weights = sum(parameter.numel() for parameter in model.parameters())

    def recipes(self) -> list[Recipe]:
        """Those for any module."""
        return for_module(self.model)

    def compress(self, recipe: Recipe, calibration: Batch) -> Trial:
        """Compress a copy."""
        compressed = freeze(compress_model(self.model, calibration, steps=recipe.steps)).eval()

        def write(folder: Path, notes: Mapping[str, Any]) -> Path:
            return save(compressed, folder, example=self.example, recipe=recipe.as_dict(), **notes)

        return Trial(
            recipe=recipe,
            nbytes=size(stored_state(compressed)),
            open=lambda: lower(copy.deepcopy(compressed)),
            timed=lambda examples: self.forward(lower(copy.deepcopy(compressed)), examples),
            write=write,
        )

    def timed(self, examples: Batch) -> Callable[[], object]:
        """One forward pass on a few examples."""
        return self.forward(self.original, examples)

    def forward(self, model: nn.Module, examples: Batch) -> Callable[[], object]:
        """One forward pass of a model on a few examples."""
        few = each(examples, lambda part: part[:TIMED].to(device_of(model)))

        def run() -> object:
            with torch.inference_mode():
                return call(model, few)

        return run


class Scratch:
    """A folder that is there for as long as somebody holds this."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lissom-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


class LanguageSubject(Subject):
    """A language model in a folder; the compressed ones wait in a folder of their own until one is chosen."""

    def __init__(self, model: str | Path, place: torch.device) -> None:
        self.checkpoint, self.place = Checkpoint(model), place
        self.original = open_folder(self.checkpoint.folder).model.to(place)
        tensors = {name: self.checkpoint.tensor(name) for name in self.checkpoint.names}
        self.nbytes, self.weights = size(tensors), sum(tensor.numel() for tensor in tensors.values())
        self.scratch = Scratch()

    def recipes(self) -> list[Recipe]:
        """Those for language models."""
        return for_language_model(self.checkpoint)

    def compress(self, recipe: Recipe, calibration: Batch) -> Trial:
        """Stream it into a folder."""
        assert isinstance(calibration, Tensor)
        folder = Path(tempfile.mkdtemp(dir=self.scratch.folder))
        compress_checkpoint(self.checkpoint.folder, recipe, calibration, folder)
        files = read_manifest(folder)["files"]

        def write(out: Path, notes: Mapping[str, Any], scratch: object = self.scratch) -> Path:
            with building(out) as copied:
                shutil.copytree(folder, copied, dirs_exist_ok=True)
                annotate(copied, **notes)
            return out

        return Trial(
            recipe=recipe,
            nbytes=sum(file["bytes"] for name, file in files.items() if name.endswith(".safetensors")),
            open=lambda: lower(open_folder(folder).model.to(self.place)),
            timed=lambda examples: self.answer(folder),
            write=write,
        )

    def timed(self, examples: Batch) -> Callable[[], object]:
        """One answer of the original."""
        return self._answer

    @cached_property
    def _answer(self) -> Callable[[], object]:
        return self.answer(self.checkpoint.folder)

    def answer(self, folder: Path) -> Callable[[], object]:
        """One answer of a model: a prompt read, and a few tokens written one at a time; on the CPU by the engine."""
        if self.place.type == "cpu":
            opened = open_folder(folder, bare=True)
            model: Any = lower(opened.model)
            running = engine(model, opened.tokenizer, 1, PROMPT, WRITTEN)
            return lambda: once(running, 1, PROMPT, WRITTEN)
        model = lower(open_folder(folder).model.to(self.place))
        answer = Answer(model, torch.randint(self.checkpoint.config.vocab_size, (1, PROMPT)).to(self.place), WRITTEN)

        def run() -> None:
            with torch.inference_mode():
                answer.read()
                answer.write()

        return run


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def plain(value: Any) -> Any:
    """A dataclass as JSON can hold it; what is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
