"""A mixed recipe: every layer by the candidate that costs the prediction least, all together within a number of bytes.

The cost of each candidate is the KL that `sensitivity` foresees; costs of layers are added up, as the quadratic form of
the Fisher information does between layers whose errors have nothing to do with each other.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from lissom.artifact import open_folder
from lissom.compress.stream import layer_names
from lissom.models import Checkpoint
from lissom.models.checkpoint import read_json
from lissom.search.allocate import choose
from lissom.search.sensitivity import Option, Steps, sensitivity
from lissom.techniques.contract import check
from lissom.types import Recipe, Step

BLOCKS = tuple({"technique": "gptq", "bits": bits, "group": 64} for bits in (2, 3, 4, 5, 6))
ENDS = tuple({"technique": "rtn", "bits": bits, "group": 64} for bits in (4, 5, 6, 8))


def mixed(
    model: str | Path,
    windows: Int[Tensor, "n t"],
    *,
    nbytes: int,
    blocks: Sequence[Any] = BLOCKS,
    ends: Sequence[Any] = ENDS,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Recipe:
    """The recipe of least foreseen KL whose weights take at most `nbytes`, everything counted.

    Args:
        model: a Hugging Face checkpoint of a known family, small enough to be in memory.
        windows: n windows of t tokens to look at the model with.
        nbytes: what all tensors of the compressed model may take together.
        blocks: candidates for the layers of the blocks; each a step, or a list of steps, without `layers`.
        ends: candidates for the embedding and the head.
        cache: a folder in which figures are kept from one call to the next, by model and data.
        progress: told the name of each layer as it is done.

    Raises:
        RecipeError: a candidate is wrong, or all of the smallest ones together are too large.
    """
    checkpoint = Checkpoint(model)
    candidates = candidates_for(checkpoint, blocks, ends)
    found = foreseen(checkpoint, windows, candidates, cache=cache, progress=progress)
    return mix(checkpoint, found, nbytes)


def mix(checkpoint: Checkpoint, found: Mapping[str, Sequence[Option]], nbytes: int) -> Recipe:
    """The recipe of least foreseen KL among the options found.

    Raises:
        RecipeError: the smallest ones together are too large.
    """
    rest = nbytes - bytes_beside(checkpoint, found)
    sizes, costs = [[o.nbytes for o in own] for own in found.values()], [[o.kl for o in own] for own in found.values()]
    chosen = choose(sizes, costs, rest)
    steps = [on(name, found[name][k].steps) for name, k in zip(found, chosen, strict=True)]
    return Recipe(name=f"mixed, {nbytes:,} bytes", steps=tuple(step for own in steps for step in own))


def on(layer: str, steps: Steps) -> Steps:
    """The steps, for one layer."""
    return tuple(replace(step, layers=layer) for step in steps)


def candidates_for(checkpoint: Checkpoint, blocks: Sequence[Any], ends: Sequence[Any]) -> dict[str, list[Steps]]:
    """The candidates of every layer of a language model.

    Raises:
        RecipeError: one names a technique or a knob that there is not.
    """
    inner, outer = ([steps_of(given) for given in several] for several in (blocks, ends))
    for step in (step for steps in (*inner, *outer) for step in steps):
        check(step)
    names = layer_names(checkpoint, checkpoint.skeleton())
    return {name: inner if name.startswith(f"{checkpoint.family.blocks}.") else outer for name in names}


def steps_of(given: Any) -> Steps:
    """One step, or several."""
    return tuple(Step.of(step) for step in (given if isinstance(given, list | tuple) else [given]))


def bytes_beside(checkpoint: Checkpoint, layers: Mapping[str, Any]) -> int:
    """Bytes of all tensors but the layers' matrices; a head that is the embedding is not stored again."""
    tied = {f"{checkpoint.family.head}.weight"} if checkpoint.config.tie_word_embeddings else set()
    without = tied | {f"{name}.weight" for name in layers}
    return sum(checkpoint.tensor(name).nbytes for name in checkpoint.names if name not in without)


def foreseen(
    checkpoint: Checkpoint,
    windows: Int[Tensor, "n t"],
    candidates: Mapping[str, Sequence[Steps]],
    *,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, tuple[Option, ...]]:
    """The sensitivity of a language model; what the cache knows already is not computed again.

    Raises:
        RecipeError: no candidate suits a layer.
    """
    file = None if cache is None else cache / f"{fingerprint(checkpoint, windows)}.json"
    known = remembered(file)
    missing = {
        name: [steps for steps in tried if all(steps != o.steps for o in known.get(name, []))]
        for name, tried in candidates.items()
    }
    missing = {name: tried for name, tried in missing.items() if tried}
    if missing:
        model, floats = open_folder(checkpoint.folder).model, checkpoint.tensor(f"{next(iter(missing))}.weight").dtype
        for name, new in sensitivity(model, windows.split(4), missing, floats=floats, progress=progress).items():
            known.setdefault(name, []).extend(new)
        remember(file, known)
    return {name: tuple(o for o in known[name] if o.steps in tried) for name, tried in candidates.items()}


def fingerprint(checkpoint: Checkpoint, windows: Int[Tensor, "n t"]) -> str:
    """Equal for equal weights and equal data."""
    digest = hashlib.sha256(str(tuple(windows.shape)).encode() + windows.contiguous().numpy().tobytes())
    for file in sorted([checkpoint.folder / "config.json", *checkpoint.folder.glob("*.safetensors")]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:32]


def remembered(file: Path | None) -> dict[str, list[Option]]:
    """What a file of the cache holds; nothing where there is none."""
    if file is None or not file.is_file():
        return {}
    return {name: [Option.of(option) for option in found] for name, found in read_json(file).items()}


def remember(file: Path | None, known: Mapping[str, Sequence[Option]]) -> None:
    """Write a file of the cache under another name first, so that it is there whole or not at all."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as opened:
        json.dump({layer: [option.as_dict() for option in found] for layer, found in known.items()}, opened)
    Path(name).replace(file)
