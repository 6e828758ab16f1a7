"""A language model trained on WikiText-2, compressed in every way there is.

Shapes: n windows, t tokens, v vocabulary.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cache import Fields, Task, sources
from recipes import BESIDE, SERVED_INT4, SERVED_INT8, Given, Longer, tables
from safetensors.torch import load_file
from table import Row, size_of
from torch import Tensor, nn

import lissom
from lissom.artifact import Opened, open_folder
from lissom.calibrate import token_windows
from lissom.engine import Engine, Sampling
from lissom.engine.lower import lower
from lissom.evaluate import paired
from lissom.evaluate.language import predict
from lissom.search.mixed import mixed

LENGTH = 512
CALIBRATION = 128  # windows
CHOOSING = 32  # of them, from which a mixed recipe is chosen
TEST = 240  # windows, unless all are asked for


class Remembered(nn.Module):
    """The original, which runs on each batch once: its logits stay in memory (2 GB for 240 windows)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a part of this module: evaluation has nothing to switch in it
        self.said: dict[bytes, Tensor] = {}

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        """The logits, as the model gave them."""
        key = input_ids.numpy().tobytes()
        if key not in self.said:
            self.said[key] = self.__dict__["model"](input_ids=input_ids, use_cache=use_cache).logits
        return SimpleNamespace(logits=self.said[key])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The model, its tokens, and a place to write."""

    source: Path
    texts: Path
    opened: Opened
    original: Remembered
    calibration: Tensor
    longer: Tensor  # all of the calibration text
    test: Tensor
    weights: int
    place: Path
    versions: dict[str, str]

    @classmethod
    def of(cls, shared: Path, windows: int | None, place: Path, versions: dict[str, str]) -> "Bench":
        """The model and the text of the shared folder."""
        source, texts = shared / "models" / "wikilm", shared / "data" / "wikitext2" / "plain"
        opened = open_folder(source)
        tokens = {
            name: token_windows((texts / f"{name}.txt").read_text(encoding="utf-8"), opened.tokenizer, LENGTH)
            for name in ("calibration", "test")
        }
        return cls(
            source=source,
            texts=texts,
            opened=opened,
            original=Remembered(opened.model),
            calibration=tokens["calibration"][:CALIBRATION],
            longer=tokens["calibration"],
            test=tokens["test"][:windows],
            weights=sum(tensor.numel() for tensor in tensors(source).values()),
            place=place,
            versions=versions,
        )

    @property
    def protocol(self) -> dict[str, Any]:
        """What every row's figures depend on."""
        return {"model": self.source.name, "test": list(self.test.shape), "calibration": list(self.calibration.shape)}

    @property
    def vocabulary(self) -> int:
        """The bytes of the tokenizer."""
        return (self.source / "tokenizer.json").stat().st_size

    def row(self, name: str, model: nn.Module, nbytes: int, **spent: Any) -> Row:
        """Evaluate a model beside the original."""
        scores = paired(self.original, model, self.test, "perplexity")
        return Row(name=name, scores=scores, nbytes=nbytes, weights=self.weights, **spent)


def tasks(bench: Bench) -> Iterator[Task]:
    """Every row that is ours, table by table."""
    found = tables(bench.opened.model.config)
    yield task(bench, "alone", "original, bfloat16", [], lambda: untouched(bench).fields())
    for table, recipes in found.items():
        for name, given in recipes.items():
            yield task(bench, table, name, given, partial(measured, bench, name, given))
            if table == "alone" and name in (SERVED_INT8, SERVED_INT4):
                served = f"{name}, on the serving kernel"
                yield task(bench, table, served, given, partial(measured, bench, served, given, kernel=True))
    for name in ("original", SERVED_INT8, SERVED_INT4):
        given = found["alone"].get(name, [])
        yield task(bench, "parity", name, given, partial(parities, bench, name, given))


def task(bench: Bench, table: str, name: str, given: Given, measure: Callable[[], Fields]) -> Task:
    """A row and what it follows from."""
    steps = given if isinstance(given, list) else given.candidates()
    kind = "parity" if table == "parity" else "kernel" if name.endswith("kernel") else "decoded"
    recipe = given if isinstance(given, list) else asdict(given)
    key = {"recipe": recipe, "kind": kind, "sources": sources(steps), **bench.protocol, "versions": bench.versions}
    return Task(part="language", table=table, name=name, key=key, measure=measure)


def untouched(bench: Bench) -> Row:
    """The original beside itself."""
    return bench.row("original", bench.opened.model, size_of(bench.source), vocabulary=bench.vocabulary)


def measured(bench: Bench, name: str, given: Given, kernel: bool = False) -> Fields:
    """Compress, read again, and evaluate; on the kernels that serve it, if asked."""
    folder, spent = compressed(bench, given)
    model = open_folder(folder).model
    more = {"vocabulary": bench.vocabulary, "layer_bits": layer_bits(bench.source, folder)}
    row = bench.row(name, lower(model) if kernel else model, size_of(folder), **more, **({} if kernel else spent))
    shutil.rmtree(folder)
    return row.fields()


def compressed(bench: Bench, given: Given) -> tuple[Path, dict[str, float]]:
    """Compress into a new folder; the seconds that the processor worked, and those that passed."""
    processor, clock = time.process_time(), time.perf_counter()
    out = bench.place / "compressed"
    shutil.rmtree(out, ignore_errors=True)
    windows = bench.longer[: given.windows] if isinstance(given, Longer) else bench.calibration
    lissom.compress_checkpoint(bench.source, recipe_of(bench, given), windows, out)
    return out, {"seconds": time.process_time() - processor, "clock": time.perf_counter() - clock}


def recipe_of(bench: Bench, given: Given) -> lissom.Recipe:
    """The recipe, chosen now where only its bytes are given."""
    if isinstance(given, Longer):
        return lissom.Recipe.of(given.steps)
    if isinstance(given, list):
        return lissom.Recipe.of(given)
    chosen = mixed(
        bench.source,
        bench.calibration[:CHOOSING],
        nbytes=given.nbytes - bench.vocabulary - BESIDE,
        blocks=given.blocks,
        ends=given.ends,
        cache=bench.place / "sensitivity",
    )
    steps = [replace(step, technique=given.by) if step.technique == "gptq" else step for step in chosen.steps]
    return lissom.Recipe.of(steps)


def layer_bits(source: Path, folder: Path) -> float | None:
    """Bits per weight of what was compressed alone: the bytes of new tensors over the weights that are gone."""
    before, after = (tensors(place) for place in (source, folder))
    gone = sum(tensor.numel() for name, tensor in before.items() if name not in after)
    new = sum(tensor.nbytes for name, tensor in after.items() if name not in before)
    return 8 * new / gone if gone else None


def tensors(folder: Path) -> dict[str, Tensor]:
    """Everything that a folder holds."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far the logits served token by token are from those evaluated in one pass, over `tokens` positions."""

    name: str
    largest_difference: float
    largest_logit: float
    same_top1: float
    tokens: int


def parities(bench: Bench, name: str, given: Given, prompt: int = 192, new: int = 64) -> Fields:
    """Serve a model, decoded and on its kernels; evaluate what was served."""
    ids, tokenizer = bench.test[0, :prompt].tolist(), bench.opened.tokenizer
    models = {name: bench.opened.model}
    if given:
        folder, _ = compressed(bench, given)
        models = {f"{name}, decoded": open_folder(folder).model}
        models[f"{name}, on the serving kernel"] = lower(open_folder(folder).model)
    return {"parities": [asdict(parity(said, model, tokenizer, ids, new)) for said, model in models.items()]}


def parity(name: str, model: nn.Module, tokenizer: Any, prompt: list[int], new: int) -> Parity:
    """Let the engine continue a prompt greedily, then run the same model over the whole in one pass."""
    served: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, given, out: served.append(out.logits[0].float()))
    engine = Engine(model, tokenizer, max_tokens_in_cache=2 * LENGTH)
    done = engine.generate([prompt], Sampling(temperature=0, max_tokens=new, ignore_eos=True))[0]
    handle.remove()
    whole = torch.tensor([[*prompt, *done.generated]])
    with torch.no_grad():
        evaluated = predict(model, whole)[0, len(prompt) - 1 :]
    logits = torch.cat(served)
    return Parity(
        name=name,
        largest_difference=float((logits - evaluated).abs().max()),
        largest_logit=float(evaluated.abs().max()),
        same_top1=float((logits.argmax(-1) == evaluated.argmax(-1)).float().mean()),
        tokens=len(logits),
    )
