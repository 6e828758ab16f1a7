"""A mixed recipe: every layer by the candidate that costs the prediction least, all together within a number of bytes.

The cost of each candidate is the KL that `sensitivity` foresees; costs of layers are added up, as the quadratic form of
the Fisher information does between layers whose errors have nothing to do with each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from lissom.compress.stream import layer_names
from lissom.models import Checkpoint
from lissom.progress import Tell, quiet
from lissom.search.allocate import choose
from lissom.search.foresee import foreseen
from lissom.search.sensitivity import Option, Steps
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
    progress: Tell = quiet,
) -> Recipe:
    """The recipe of least foreseen KL whose weights take at most `nbytes`, everything counted.

    Args:
        model: a Hugging Face checkpoint of a known family.
        windows: n windows of t tokens to look at the model with.
        nbytes: what all tensors of the compressed model may take together.
        blocks: candidates for the layers of the blocks; each a step, or a list of steps, without `layers`.
        ends: candidates for the embedding and the head.
        cache: a folder in which figures are kept from one call to the next, by model, data and code.
        progress: told of each layer as it is done.

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
