"""What is searched over: a module in memory, or a language model on disk. Both can be compressed, opened and timed."""

import copy
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lissom.artifact import annotate, compress_checkpoint, load, open_folder, read_manifest, save
from lissom.artifact.fingerprint import of_model, of_tensors
from lissom.artifact.language import write_pieces
from lissom.artifact.manifest import building
from lissom.artifact.module import stored_state
from lissom.calibrate import Batch, call
from lissom.calibrate.data import device_of, each
from lissom.compress import compress_model
from lissom.compress.stream import assembled, layer_names
from lissom.engine.bench import engine, once
from lissom.engine.lower import lower
from lissom.errors import DataError
from lissom.evaluate import Metric
from lissom.evaluate.examples import pieces, tensors
from lissom.formats import freeze
from lissom.hardware.bench import Answer
from lissom.hardware.measure import once_ms
from lissom.models import Checkpoint, compressible, replace, weight_of
from lissom.models.experts import apart
from lissom.progress import Tell
from lissom.search.bank import Bank, Choice
from lissom.search.fill import TOKENS, fill_cache, fill_from_checkpoint, fill_from_module
from lissom.search.forms import CACHE, HELD, ORIGINAL, Steps, forms_of, kind_of, units_of_checkpoint, units_of_module
from lissom.search.latency import Run
from lissom.search.mixed import bytes_beside
from lissom.search.result import Point
from lissom.search.shallow import enough
from lissom.search.yardstick import Yardstick
from lissom.types import Recipe

LOT = 64  # examples of a step of learning
TIMED = 16  # examples of the batch whose forward pass is timed
NOTHING: Choice = MappingProxyType({})
PROMPT, WRITTEN, FEW = 64, 16, 4  # tokens of the answer that is timed: read, written, and written by large models
LARGE = 300_000_000  # weights of these: each token takes so long that few of them tell as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One compressed model: how many bytes it has, how to compare it, what is timed of it, how to write it."""

    recipe: Recipe
    nbytes: int
    open: Callable[[], nn.Module]
    timed: Callable[[], Run]
    write: Callable[[Path, Mapping[str, Any]], Path]
    language: bool = False


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
    share = 1.0

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

    def shallow(self) -> "Subject":
        """What tells of all kinds of layers how long their forms take: a part of it, with `share` of its blocks."""
        return self

    def point(self, name: str, nbytes: int, **figures: Any) -> Point:
        """The figures of a model of so many bytes."""
        return Point(name=name, nbytes=nbytes, bits_per_weight=8 * nbytes / self.weights, **figures)


class ModuleSubject(Subject):
    """Any module; it stays as and where it is, and a copy is measured in the place of the target."""

    def __init__(self, model: nn.Module, example: Batch, place: torch.device, timed: Batch | None = None) -> None:
        self.model = model if device_of(model).type == place.type else copy.deepcopy(model).to(place)
        self.example = example
        self.few = each(example if timed is None else timed, lambda part: part[:TIMED].to(place))
        self.original = copy.deepcopy(self.model).eval()
        self.nbytes = size(stored_state(self.original))
        self.weights = sum(parameter.numel() for parameter in model.parameters())

    @cached_property
    def units(self) -> dict[str, tuple[str, ...]]:  # type: ignore[override]
        """Those that are given the same."""
        return units_of_module(self.original, self.example)

    @cached_property
    def layers(self) -> dict[str, nn.Module]:  # type: ignore[override]
        """The layers with a matrix."""
        return compressible(apart(copy.deepcopy(self.original)))

    @property
    def kinds(self) -> dict[str, str]:  # type: ignore[override]
        """By names without numbers."""
        return {unit: kind_of(unit, self.layers) for unit in self.units}

    @property
    def forms(self) -> dict[str, dict[str, Steps]]:  # type: ignore[override]
        """Those for any layer."""
        return {name: forms_of(layer) for name, layer in self.layers.items()}

    @property
    def beside(self) -> int:
        """Bytes of what is no matrix of a layer."""
        matrices = {id(layer.weight): layer.weight.nbytes for layer in self.layers.values()}
        return self.nbytes - sum(matrices.values())  # type: ignore[arg-type]

    def fingerprint(self) -> str:
        """Of all tensors."""
        return of_tensors(self.original.state_dict())

    def timing(self) -> list[Any]:
        """The module in words, and the shapes of its inputs."""
        return [repr(self.original), [list(part.shape) for part in tensors(self.few)]]

    def fill(self, bank: Bank, calibration: Batch, kind: Metric, max_ram: int | None, tell: Tell) -> None:
        """From one pass over the data, and one over a part of it for each form of each unit."""
        yardstick = Yardstick(self.original, (), (), (calibration, kind))
        fill_from_module(bank, apart(copy.deepcopy(self.original)), calibration, yardstick, tell)

    def compress(self, recipe: Recipe, calibration: Batch) -> Trial:
        """Compress a copy."""
        return self.trial(self.compressed(recipe, calibration), recipe)

    def compress_into(self, folder: Path, recipe: Recipe, calibration: Batch, choice: Choice) -> None:
        """Compress a copy and save it, without its graph."""
        save(self.compressed(recipe, calibration), folder, recipe=recipe.as_dict())

    def compressed(self, recipe: Recipe, calibration: Batch) -> nn.Module:
        """A compressed copy; where it learns, from a few examples at a time."""
        lots = list(pieces(calibration, LOT, self.model))
        return freeze(compress_model(self.model, lots, steps=recipe.steps)).eval()

    def reopened(self, folder: Path, recipe: Recipe) -> Trial:
        """A copy of the original with what is in the folder."""
        return self.trial(load(folder, model=self.original).to(device_of(self.original)), recipe)

    def assemble(self, bank: Bank, choice: Choice, name: str) -> Trial:
        """A copy with layers from the bank."""
        return self.trial(self.with_layers(bank, choice), bank.recipe(choice, name))

    def with_layers(self, bank: Bank, choice: Choice) -> nn.Module:
        """A copy with layers from the bank, not lowered."""
        model = apart(copy.deepcopy(self.original))
        layers = compressible(model)
        weights = {layer: bank.weight(layer, form) for layer, form in bank.by_layer(choice).items()}
        found = {layer: weight for layer, weight in weights.items() if weight is not None}
        for unit in choice:  # layers that share a matrix go on sharing it
            for layer in self.units[unit]:
                if layer in found and layers[layer].weight is layers[unit].weight:
                    found[layer] = found[unit]
        replace(model, found, layers, trainable=False)
        return model.to(device_of(self.original))

    def trial(self, compressed: nn.Module, recipe: Recipe) -> Trial:
        """What is asked of a compressed copy."""

        def write(folder: Path, notes: Mapping[str, Any]) -> Path:
            return save(compressed, folder, example=self.example, recipe=recipe.as_dict(), **notes)

        return Trial(
            recipe=recipe,
            nbytes=size(stored_state(compressed)),
            open=lambda: lower(copy.deepcopy(compressed)),
            timed=lambda: self.forward(lower(copy.deepcopy(compressed))),
            write=write,
        )

    def timed(self) -> Run:
        """One forward pass on a few examples."""
        return self.forward(self.original)

    def forward(self, model: nn.Module) -> Run:
        """One forward pass of a model on a few examples."""

        def run() -> dict[str, float]:
            with torch.inference_mode():
                return {"call": once_ms(lambda: call(model, self.few), device_of(model).type)}

        return run


class Scratch:
    """A folder that is there for as long as somebody holds this."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lissom-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


class LanguageSubject(Subject):
    """A language model in a folder; a compressed one waits in a folder of its own, as long as somebody holds it."""

    def __init__(self, model: str | Path | Checkpoint, place: torch.device, prompt: int = PROMPT) -> None:
        self.checkpoint = model if isinstance(model, Checkpoint) else Checkpoint(model)
        self.place, self.prompt = place, prompt
        most = self.checkpoint.config.max_position_embeddings - WRITTEN - 1
        if not 1 <= prompt <= most:
            raise DataError(f"prompt: {prompt} tokens cannot be timed with what is written; choose 1 to {most}")
        held = {name: self.checkpoint.tensor(name) for name in self.checkpoint.names}
        self.nbytes, self.weights = size(held), sum(tensor.numel() for tensor in held.values())
        self.written = WRITTEN if self.weights < LARGE else FEW  # tokens of the answer that is timed, after the prompt
        self.folder = str(self.checkpoint.folder.resolve())
        self.layers = compressible(self.checkpoint.skeleton())
        self.names = layer_names(self.checkpoint, self.checkpoint.skeleton())
        self.units = units_of_checkpoint(self.checkpoint, self.names)
        self.kinds = {unit: kind_of(unit, self.layers) for unit in self.units}
        self.forms = {name: forms_of(self.layers[name], language=True) for name in self.names}
        self._answer: Callable[[], Run | None] = lambda: None
        if place.type == "cpu":  # where the engine runs
            self.units[CACHE], self.kinds[CACHE], self.forms[CACHE] = (CACHE,), CACHE, dict.fromkeys(HELD, ())

    def shallow(self) -> Subject:
        """Its first blocks, of which as much is timed as of all."""
        blocks: int = self.checkpoint.config.num_hidden_layers
        count = enough(self.checkpoint, self.kinds)
        if count == blocks:
            return self
        first = LanguageSubject(self.checkpoint.first(count), self.place, self.prompt)
        first.written, first.share = self.written, count / blocks
        return first

    @property
    def original(self) -> nn.Module:  # type: ignore[override]
        """The model as it was given, opened anew: it is in memory for as long as somebody holds it."""
        return self.opened(self.checkpoint.folder)

    @property
    def beside(self) -> int:
        """Bytes of what is no matrix of a layer."""
        return bytes_beside(self.checkpoint, dict.fromkeys(self.names))

    def fingerprint(self) -> str:
        """Of all files."""
        return of_model(self.checkpoint.folder)

    def timing(self) -> list[Any]:
        """The config, and how much is read and written."""
        return [self.checkpoint.config.to_dict(), self.prompt, self.written]

    def fill(self, bank: Bank, calibration: Batch, kind: Metric, max_ram: int | None, tell: Tell) -> None:
        """From one pass over the data, and one back from the end loss."""
        assert isinstance(calibration, Tensor)
        fill_from_checkpoint(bank, self.checkpoint, calibration, max_ram, tell)
        if CACHE in bank.missing():
            few = calibration[: max(1, TOKENS // calibration.shape[1])]
            original = self.original  # once: it is opened anew each time
            fill_cache(bank, original, Yardstick(original, (), (), (few, kind)))

    def compress(self, recipe: Recipe, calibration: Batch) -> Trial:
        """Stream it into a folder that is there for as long as somebody holds the trial."""
        scratch = Scratch()
        self.compress_into(scratch.folder / "model", recipe, calibration, NOTHING)
        return self.trial(scratch.folder / "model", recipe, scratch)

    def compress_into(self, folder: Path, recipe: Recipe, calibration: Batch, choice: Choice) -> None:
        """Stream it there."""
        assert isinstance(calibration, Tensor)
        held_as(compress_checkpoint(self.checkpoint.folder, recipe, calibration, folder), choice)

    def reopened(self, folder: Path, recipe: Recipe) -> Trial:
        """The folder as it is."""
        return self.trial(folder, recipe)

    def assemble(self, bank: Bank, choice: Choice, name: str) -> Trial:
        """Write it into a folder, with layers from the bank."""
        recipe, forms, scratch = bank.recipe(choice, name), bank.by_layer(choice), Scratch()
        pieces = assembled(self.checkpoint, lambda layer: bank.weight(layer, forms[layer]))
        write_pieces(self.checkpoint, recipe, pieces, scratch.folder / "model")
        return self.trial(held_as(scratch.folder / "model", choice), recipe, scratch)

    def trial(self, folder: Path, recipe: Recipe, scratch: object = None) -> Trial:
        """What is asked of a folder, which is there for as long as `scratch` is."""
        files = read_manifest(folder)["files"]

        def write(out: Path, notes: Mapping[str, Any], scratch: object = scratch) -> Path:
            with building(out) as copied:
                shutil.copytree(folder, copied, dirs_exist_ok=True)
                annotate(copied, **notes)
            return out

        return Trial(
            recipe=recipe,
            nbytes=sum(file["bytes"] for name, file in files.items() if name.endswith(".safetensors")),
            open=partial(self.opened, folder, scratch),
            timed=partial(self.answer, folder, scratch),
            write=write,
            language=self.place.type == "cpu",
        )

    def opened(self, folder: Path, scratch: object = None) -> nn.Module:
        """The model of a folder, which is there for as long as `scratch` is."""
        return lower(open_folder(folder, narrow=self.place.type == "cpu").model.to(self.place))

    def timed(self) -> Run:
        """One answer of the original; what runs it stays open for as long as somebody holds this."""
        run = self._answer()
        if run is None:
            run = self.answer(self.checkpoint.folder)
            self._answer = weakref.ref(run)
        return run

    def answer(self, folder: Path, scratch: object = None) -> Run:
        """One answer of a model: a prompt read, and a few tokens written one at a time; on the CPU by the engine."""
        if self.place.type == "cpu":
            opened = open_folder(folder, bare=True)
            model: Any = lower(opened.model)
            running = engine(model, opened.tokenizer, 1, self.prompt, self.written, cache=opened.cache)

            def served() -> dict[str, float]:
                read, write = once(running, 1, self.prompt, self.written)
                return {"prefill": 1000 * read, "decode": 1000 * write}

            return served
        model = lower(open_folder(folder).model.to(self.place))
        tokens = torch.randint(self.checkpoint.config.vocab_size, (1, self.prompt))
        answer = Answer(model, tokens.to(self.place), self.written)

        def run() -> dict[str, float]:
            with torch.inference_mode():
                parts = {"prefill": answer.read, "decode": answer.write}
                return {name: once_ms(part, self.place.type) for name, part in parts.items()}

        return run


def held_as(folder: Path, choice: Choice) -> Path:
    """A folder in which it is written down how a choice holds the cache."""
    if choice.get(CACHE, ORIGINAL) != ORIGINAL:
        annotate(folder, cache=HELD[choice[CACHE]])
    return folder


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
