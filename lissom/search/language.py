"""A language model on disk as what a search makes smaller."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lissom.artifact import annotate, compress_checkpoint, open_folder, read_manifest
from lissom.artifact.fingerprint import of_model
from lissom.artifact.language import write_pieces
from lissom.artifact.manifest import building
from lissom.calibrate import Batch
from lissom.compress.stream import assembled, layer_names
from lissom.engine.bench import engine
from lissom.engine.lower import lower, placed
from lissom.engine.turn import once
from lissom.errors import DataError
from lissom.evaluate import Metric
from lissom.formats import Weight
from lissom.hardware.bench import Answer
from lissom.hardware.measure import once_ms
from lissom.models import Checkpoint, compressible, weight_of
from lissom.progress import Tell
from lissom.resident import give_back
from lissom.search.bank import Bank, Choice
from lissom.search.fill import TOKENS, fill_cache, fill_from_checkpoint
from lissom.search.forms import CACHE, HELD, ORIGINAL, forms_of, kind_of, units_of_checkpoint
from lissom.search.latency import Run
from lissom.search.loads import Loads, loads_of_answer
from lissom.search.mixed import bytes_beside
from lissom.search.room import at_once
from lissom.search.shallow import enough
from lissom.search.subject import LARGE, Subject, Trial, size
from lissom.search.yardstick import Yardstick
from lissom.types import Recipe

PROMPT, WRITTEN, FEW = 64, 16, 4  # tokens of the answer that is timed: read, written, and written by large models


class Scratch:
    """A folder that is there for as long as somebody holds this."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lissom-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


class LanguageSubject(Subject):
    """A language model in a folder; a compressed one waits in a folder of its own, as long as somebody holds it."""

    def __init__(
        self, model: str | Path | Checkpoint, place: torch.device, prompt: int = PROMPT, *, rows: bool = False
    ) -> None:
        self.checkpoint = model if isinstance(model, Checkpoint) else Checkpoint(model)
        self.place, self.prompt, self.rows = place, prompt, rows
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
        self.forms = {name: forms_of(self.layers[name], language=True, rows=rows) for name in self.names}
        self._answer: Callable[[], Run | None] = lambda: None
        if place.type == "cpu":  # where the engine runs
            self.units[CACHE], self.kinds[CACHE], self.forms[CACHE] = (CACHE,), CACHE, dict.fromkeys(HELD, ())

    def shallow(self) -> Subject:
        """Its first blocks, of which as much is timed as of all."""
        blocks: int = self.checkpoint.config.num_hidden_layers
        count = enough(self.checkpoint, self.kinds)
        if count == blocks:
            return self
        first = LanguageSubject(self.checkpoint.first(count), self.place, self.prompt, rows=self.rows)
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
            fill_cache(bank, original, Yardstick(original, (), (), (few, at_once(kind, 1))))  # a window at a time

    def compress(self, recipe: Recipe, calibration: Batch) -> Trial:
        """Stream it into a folder that is there for as long as somebody holds the trial."""
        scratch = Scratch()
        self.compress_into(scratch.folder / "model", recipe, calibration, {})
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
            weights=lambda: weights_in(folder, scratch),
            language=self.place.type == "cpu",
        )

    def opened(self, folder: Path, scratch: object = None) -> nn.Module:
        """The model of a folder, which is there for as long as `scratch` is."""
        give_back()
        return lower(placed(open_folder(folder, narrow=self.place.type == "cpu").model, self.place))

    def loads(self) -> Loads:
        """What each layer is given in an answer."""
        return loads_of_answer(self.checkpoint, self.names, self.prompt, self.written)

    def width(self, layer: str) -> int:
        """Bytes of a number of a layer, as it is stored."""
        return self.checkpoint.tensor(f"{layer}.weight").element_size()

    def timed(self) -> Run:
        """One answer of the original; what runs it stays open for as long as somebody holds this."""
        run = self._answer()
        if run is None:
            run = self.answer(self.checkpoint.folder)
            self._answer = weakref.ref(run)
        return run

    def answer(self, folder: Path, scratch: object = None) -> Run:
        """One answer of a model: a prompt read, and a few tokens written one at a time; on the CPU by the engine."""
        give_back()
        if self.place.type == "cpu":
            opened = open_folder(folder, bare=True)
            model: Any = lower(opened.model)
            running = engine(model, opened.tokenizer, 1, self.prompt, self.written, cache=opened.cache)

            def served() -> dict[str, float]:
                read, write = once(running, 1, self.prompt, self.written)
                return {"prefill": 1000 * read, "decode": 1000 * write}

            return served
        model = lower(placed(open_folder(folder).model, self.place))
        tokens = torch.randint(self.checkpoint.config.vocab_size, (1, self.prompt))
        answer = Answer(model, tokens.to(self.place), self.written)

        def run() -> dict[str, float]:
            with torch.inference_mode():
                parts = {"prefill": answer.read, "decode": answer.write}
                return {name: once_ms(part, self.place.type) for name, part in parts.items()}

        return run


def weights_in(folder: Path, scratch: object = None) -> dict[str, Weight]:
    """The weights of the layers in a folder, which is there for as long as `scratch` is."""
    return {name: weight_of(layer) for name, layer in compressible(open_folder(folder, narrow=True).model).items()}


def held_as(folder: Path, choice: Choice) -> Path:
    """A folder in which it is written down how a choice holds the cache."""
    if choice.get(CACHE, ORIGINAL) != ORIGINAL:
        annotate(folder, cache=HELD[choice[CACHE]])
    return folder
