"""The sensitivities of a language model on disk, part by part, and what is remembered of them from call to call.

One pass forward leaves the inputs of all blocks; on the way back from the end loss a block at a time is in memory, with
what its layers are given and what is heard of their outputs. Its candidates are tried there and then, so that nothing
of it has to be kept. That works because all of them are tried on the original model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from lissom.artifact.fingerprint import of_code, of_json, of_model, of_tensors
from lissom.calibrate.gradients import Heard, Rows
from lissom.calibrate.observe import looks_up
from lissom.calibrate.spill import Spill
from lissom.calibrate.stream import Stream
from lissom.compress.layers import back
from lissom.compress.plan import Phase
from lissom.compress.ram import Room, first_below, ways_back
from lissom.compress.stream import seen_in
from lissom.errors import DataError, RecipeError
from lissom.files import read_json, replacing
from lissom.models import Checkpoint, compressible, weight_of
from lissom.models.experts import check_unrouted
from lissom.models.families import at
from lissom.progress import Progress, Tell, quiet
from lissom.search.sensitivity import Found, Keep, Option, Seen, Steps, fitting, kinds_of, options
from lissom.statistics import Statistic

LOT = 4  # windows at a time
Kinds = dict[str, set[type[Statistic]]]
Known = dict[str, list[tuple[Steps, Option | RecipeError]]]


def foreseen(
    checkpoint: Checkpoint,
    windows: Int[Tensor, "n t"],
    candidates: Mapping[str, Sequence[Steps]],
    *,
    cache: Path | None = None,
    max_ram: int | None = None,
    progress: Tell = quiet,
) -> dict[str, tuple[Option, ...]]:
    """The sensitivity of a language model; what the cache knows already is not computed again.

    With `max_ram` the process stays below so many bytes of memory.

    Raises:
        RecipeError: no candidate suits a layer, or one acts on more than a layer.
        DataError: there are no windows, a layer is not reached by them, or `max_ram` is too little, as far as can be
            foreseen.
    """
    if not len(windows):
        raise DataError("data: there is not one window to look at the model with; give more text, or shorter windows")
    file = None if cache is None else cache / f"{fingerprint(checkpoint, windows)}.json"
    known = remembered(file)
    missing = {name: [steps for steps in tried if not of(known, name, steps)] for name, tried in candidates.items()}
    missing = {name: tried for name, tried in missing.items() if tried}
    if missing:
        checkpoint.check()
        there, total = len(candidates) - len(missing), len(candidates)
        for done, (name, new) in enumerate(streamed(checkpoint, windows, missing, max_ram), there + 1):
            known.setdefault(name, []).extend(zip(missing[name], new, strict=True))
            progress(Progress(stage="sensitivity", text=name, done=done, total=total))
        remember(file, known)
    silent = [name for name in candidates if name not in known]
    if silent:
        raise DataError(f"data: {silent[0]} is not used when the model runs on it; leave it out, or give other data")
    found = {name: [of(known, name, steps) for steps in tried] for name, tried in candidates.items()}
    return {name: fitting(name, tuple(one for own in tried for one in own)) for name, tried in found.items()}


def of(known: Known, name: str, steps: Steps) -> list[Option | RecipeError]:
    """What is known of a candidate: one thing, or nothing."""
    return [found for same, found in known.get(name, []) if same == steps][:1]


def streamed(
    checkpoint: Checkpoint,
    windows: Int[Tensor, "n t"],
    candidates: Mapping[str, Sequence[Steps]],
    max_ram: int | None = None,
    keep: Keep = lambda name, number, option, weight: None,
) -> Iterator[tuple[str, Found]]:
    """What becomes of the candidates of each layer, the last layer first, one part of the model in memory at a time.

    A tied head is a second use of the embedding's matrix. What a candidate makes of a layer is given to `keep`.
    """
    stream, family = Stream(checkpoint, windows, LOT), checkpoint.family
    kinds: Kinds = {name: kinds_of(tried) for name, tried in candidates.items()}
    if max_ram is not None:
        bound(stream, candidates, max_ram)
    if checkpoint.config.tie_word_embeddings and family.embedding in candidates:
        kinds[family.head] = set()
    check_unrouted(stream.model, back(kinds))
    guided = {at(stream.model, name) for name in back(kinds)}
    more: list[Seen] = []
    parts = stream.backward(stream.embedding(), kinds, lambda layer, y: Ears.of(layer, y, layer in guided))
    for name, part, ears in parts:
        seen = seen_of(stream, name, part, kinds, ears)
        for own in list(seen):
            uses = [seen.pop(own), *(more if own == family.embedding else [])]
            if own in candidates:
                floats, weight = checkpoint.tensor(f"{own}.weight").dtype, weight_of(at(stream.model, own))
                yield own, options(own, weight, candidates[own], uses, windows.numel(), floats, keep)
            else:
                more = uses


def bound(stream: Stream, candidates: Mapping[str, Sequence[Steps]], max_ram: int) -> None:
    """Make a stream run in the fastest way that stays below so many bytes.

    Raises:
        DataError: there is none.
    """
    size = (stream.windows.shape[0], stream.windows.shape[1])
    room = first_below(max_ram, rooms_back(stream.checkpoint, stream.model, candidates, size))
    stream.batch, stream.spill = room.batch, Spill() if room.spilled else None


def rooms_back(
    checkpoint: Checkpoint, model: nn.Module, candidates: Mapping[str, Sequence[Steps]], windows: tuple[int, int]
) -> Iterator[Room]:
    """All ways to try candidates on windows (n of t tokens), the fastest first."""
    plan = {name: [step for steps in tried for step in steps] for name, tried in candidates.items()}
    return ways_back(checkpoint, model, [Phase(grain="layer", plan=plan, steps=())], windows)


@dataclass(slots=True)
class Ears:
    """What is heard of a layer: what its candidates are judged by, and where they ask for it what they are made by."""

    rows: Rows
    heard: Heard | None

    @classmethod
    def of(cls, layer: nn.Module, y: Tensor, guided: bool) -> "Ears":
        """Nothing heard yet of a layer with such an output."""
        return cls(Rows.of(layer, y), Heard.of(layer, y) if guided and not looks_up(layer) else None)

    def see(self, layer: nn.Module, x: Tensor, g: Tensor) -> None:
        """Take in a batch: the layer's input, and the gradient at its output."""
        self.rows.see(layer, x, g)
        if self.heard is not None:
            self.heard.see(layer, x, g)


def seen_of(stream: Stream, name: str, part: nn.Module, kinds: Kinds, ears: Mapping[str, Ears]) -> dict[str, Seen]:
    """What the layers of a part are given, and what was heard of them."""
    layers = {own: layer for own, layer in compressible(part, name).items() if own in ears}
    if isinstance(part, nn.Linear):  # the head, whose logits would be many and are not needed
        part = nn.Identity()
        layers = dict.fromkeys(layers, part)
    heard = {own: found.heard for own, found in ears.items() if found.heard is not None}
    wanted = {own: kinds[own] for own in layers}
    inputs = seen_in(stream, name, part, layers, wanted, heard) if any(wanted.values()) else {}
    return {own: Seen(inputs=inputs.get(own, {}), rows=ears[own].rows) for own in layers}


def fingerprint(checkpoint: Checkpoint, windows: Int[Tensor, "n t"]) -> str:
    """Equal for equal weights, equal data and equal code."""
    return of_json([of_model(checkpoint.folder), of_tensors({"windows": windows}), of_code()])[:32]


def remembered(file: Path | None) -> Known:
    """What a file of the cache holds; nothing where there is none."""
    if file is None or not file.is_file():
        return {}
    return {name: [read_back(entry) for entry in found] for name, found in read_json(file).items()}


def read_back(entry: Mapping[str, Any]) -> tuple[Steps, Option | RecipeError]:
    """A candidate and what became of it."""
    option = Option.of({"nbytes": 0, "error": 0.0, "kl": 0.0, **entry})
    return option.steps, RecipeError(entry["refused"]) if "refused" in entry else option


def as_entry(steps: Steps, found: Option | RecipeError) -> dict[str, Any]:
    """The inverse of `read_back`."""
    if isinstance(found, Option):
        return found.as_dict()
    return {"steps": [step.as_dict() for step in steps], "refused": str(found)}


def remember(file: Path | None, known: Known) -> None:
    """Write a file of the cache under another name first, so that it is there whole or not at all."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new:
        new.write_text(
            json.dumps({layer: [as_entry(*one) for one in found] for layer, found in known.items()}), encoding="utf-8"
        )
