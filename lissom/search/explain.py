"""Explain: what a recipe would do to each layer of a model, and to its size, without doing it.

How many bytes a format takes follows from the shape and the knobs, not from the values (but for scales too small for
float16): the steps are run once for each shape, without data. Rows are written one like another, so that of a tall
matrix only a few are read. With three heights, apart by a multiple of whatever knob may count rows,

    bytes(o) = bytes(o₁) + (o - o₁) / (o₂ - o₁) · (bytes(o₂) - bytes(o₁))        if o₁, o₂, o₃ lie on a line

and otherwise the whole height is run.

Shapes: o outputs, i inputs.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lissom.artifact import MANIFEST, open_folder
from lissom.artifact.module import stored_state
from lissom.compress.layers import steps_on
from lissom.compress.plan import phases
from lissom.compress.stream import layer_names, stored_like
from lissom.compress.turn import family_in
from lissom.engine.lower import lower
from lissom.errors import ModelError
from lissom.files import read_json
from lissom.formats import CompressedEmbedding, CompressedLinear, Dense, Frozen, Weight, freeze, wrap
from lissom.models import Checkpoint, compressible, weight_of
from lissom.models.apart import apart
from lissom.techniques.contract import grain, knobs
from lissom.types import Recipe, Step

ROWS = 64  # rows that are alike to every kernel and every padding
COUNTS_NO_ROWS = {"damp", "iterations", "rounds", "seed"}
RESHAPING = {"shape", "model"}  # grains that may take rows and columns away, as many as the data tells
LEARNING = {"distil"}  # techniques of them that only move what is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A layer to be explained: how to read its first rows, or its weight where that is compressed already."""

    layer: nn.Module
    shape: tuple[int, int]
    rows: Callable[[int], Tensor]
    dtype: torch.dtype
    kept_in: torch.dtype = torch.float32  # what floats of the result are stored in
    weight: Weight | None = None
    tied: bool = False  # an embedding that is the head too

    @property
    def nbytes(self) -> int:
        """Bytes that it takes now."""
        return self.weight.nbytes if self.weight else self.shape[0] * self.shape[1] * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What would become of a layer. `at_most` is set where a step may take away more than can be known beforehand."""

    name: str
    shape: tuple[int, int]
    steps: tuple[Step, ...]
    bytes_before: int
    bytes_after: int
    format: str
    kernel: str
    at_most: bool

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights."""
        return 8 * self.bytes_after / math.prod(self.shape)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**own, "steps": [step.as_dict() for step in self.steps], "bits_per_weight": self.bits_per_weight}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All layers, and all bytes: those of what is no layer (norms, biases) among them."""

    layers: tuple[Foreseen, ...]
    bytes_before: int
    bytes_after: int

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        layers = [layer.as_dict() for layer in self.layers]
        return {"bytes_before": self.bytes_before, "bytes_after": self.bytes_after, "layers": layers}


def explain(model: str | Path | nn.Module, recipe: Recipe) -> Explanation:
    """What a recipe would do to a module, to the folder of one, or to a language model's folder.

    Raises:
        RecipeError: a step is wrong in itself, names no layer there is, or has a knob that does not suit a layer.
        ModelError: the model has no layer that can be compressed.
    """
    if isinstance(model, nn.Module):
        return of_module(model, recipe)
    folder = Path(model)
    if (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get("kind") == "module":
        return of_module(open_folder(folder).model, recipe)
    return of_checkpoint(Checkpoint(model), recipe)


def of_module(model: nn.Module, recipe: Recipe) -> Explanation:
    """What a recipe would do to a module in memory; a matrix that several layers share is counted once."""
    model = freeze(apart(copy.deepcopy(model)))
    layers = compressible(model)
    if not layers:
        raise ModelError(f"{type(model).__name__} has no Linear, Conv or Embedding layer of its own to compress")
    weights = {name: weight_of(layer) for name, layer in layers.items()}
    sources = {
        name: Source(layer=layers[name], shape=w.shape, rows=partial(first, w.values), dtype=w.values.dtype)
        if isinstance(w, Dense)
        else Source(
            layer=layers[name], shape=w.shape, rows=partial(first, torch.empty(0)), dtype=torch.float32, weight=w
        )
        for name, w in weights.items()
    }
    total = sum(tensor.nbytes for tensor in stored_state(model).values())
    owner = {name: (layer.matrix if hasattr(layer, "matrix") else layer.weight) for name, layer in layers.items()}
    firsts = {id(held): name for name, held in reversed(owner.items())}
    shared = {name for name, held in owner.items() if firsts[id(held)] != name}
    family = family_in(model)
    new = {family.head} & shared if family and parts_head(recipe) else set()
    return explained(sources, recipe, total, shared - new, new)


def of_checkpoint(checkpoint: Checkpoint, recipe: Recipe) -> Explanation:
    """What a recipe would do to a language model on disk."""
    model, tied = checkpoint.skeleton(), checkpoint.config.tie_word_embeddings
    layers = compressible(model)
    embedding, head = checkpoint.family.embedding, checkpoint.family.head
    new = {head} if tied and parts_head(recipe) else set()
    sources = {}
    for name in (*layer_names(checkpoint, model), *new):
        stored = checkpoint.tensor(f"{embedding if name in new else name}.weight")
        o, i = stored.shape
        both = tied and not new and name == embedding
        found = Source(layer=layers[name], shape=(o, i), rows=partial(first, stored), dtype=stored.dtype)
        sources[name] = replace(found, kept_in=stored.dtype, tied=both)
    total = sum(checkpoint.tensor(name).nbytes for name in checkpoint.names if not (tied and name == f"{head}.weight"))
    learning = any(step.technique in LEARNING for step in recipe.steps)
    return explained(sources, recipe, total, set(), new, vectors_grow(checkpoint) if learning else 0)


def parts_head(recipe: Recipe) -> bool:
    """Whether a head that is the embedding becomes a matrix of its own."""
    return any(grain(step.technique) == "stream" for step in recipe.steps)


def vectors_grow(checkpoint: Checkpoint) -> int:
    """How many bytes vectors take more when they have learned, for they keep all digits then."""
    vectors = (tensor for tensor in map(checkpoint.tensor, checkpoint.names) if tensor.dim() == 1)
    return sum(4 * tensor.numel() - tensor.nbytes for tensor in vectors)


def first(matrix: Tensor, rows: int) -> Tensor:
    """Some rows of a matrix, which need not be in memory."""
    return matrix[:rows].float()


def explained(
    sources: Mapping[str, Source], recipe: Recipe, total: int, shared: set[str], new: set[str], grown: int = 0
) -> Explanation:
    """Every layer foreseen; equal layers with equal steps are looked at once.

    Those `new` are not in the total yet; `grown` is by how much else gets larger.
    """
    steps: dict[str, list[Step]] = {}
    for phase in phases(recipe, list(sources)):
        for name, more in phase.plan.items():
            steps.setdefault(name, []).extend(more)
    known: dict[Any, Foreseen] = {}
    layers = []
    for name, source in sources.items():
        own = tuple(steps.get(name, ()))
        kind = (
            type(source.layer),
            source.shape,
            source.dtype,
            repr(own),
            id(source.weight) if source.weight else source.tied,
        )
        if kind not in known:
            known[kind] = foresee(name, source, own)
        layers.append(replace(known[kind], name=name, steps=own))
    saved = sum(layer.bytes_before - layer.bytes_after for layer in layers if layer.name not in shared)
    added = grown + sum(layer.bytes_before for layer in layers if layer.name in new)
    return Explanation(layers=tuple(layers), bytes_before=total, bytes_after=total + added - saved)


def foresee(name: str, source: Source, steps: Sequence[Step]) -> Foreseen:
    """What would become of one layer."""
    acting = [step for step in steps if grain(step.technique) == "layer"]
    after, sample = sized(name, source, acting) if acting else (source.nbytes, source.weight)
    return Foreseen(
        name=name,
        shape=source.shape,
        steps=tuple(steps),
        bytes_before=source.nbytes,
        bytes_after=after,
        format="dense" if sample is None else str(sample.spec()["format"]),
        kernel="dense" if sample is None else " and ".join(kernel_of(layer, sample) for layer in runs(source)),
        at_most=any(grain(step.technique) in RESHAPING and "sparsity" in knobs(step.technique) for step in steps),
    )


def sized(name: str, source: Source, steps: Sequence[Step]) -> tuple[int, Weight]:
    """Bytes after the steps, and a weight of the same kind."""
    rows, apart = source.shape[0], period(steps)
    heights = [apart * count + rows % apart for count in (1, 2, 3)]
    if source.weight is not None or heights[-1] >= rows:
        whole = tried(name, source, steps, rows)
        return whole.nbytes, whole
    samples = [tried(name, source, steps, height) for height in heights]
    low, middle, high = (sample.nbytes for sample in samples)
    if high - middle != middle - low:
        whole = tried(name, source, steps, rows)
        return whole.nbytes, whole
    return low + (rows - heights[0]) // apart * (middle - low), samples[0]


def period(steps: Sequence[Step]) -> int:
    """After how many rows what is written begins again, whichever of the knobs counts rows, or a share of them."""
    given = [
        step.knobs.get(name, default)
        for step in steps
        for name, (_, default) in knobs(step.technique).items()
        if name not in COUNTS_NO_ROWS
    ]
    whole = [value for value in given if type(value) is int and value > 1]
    shares = [value for value in given if type(value) is float and math.isfinite(value)]
    parts = [Fraction(share).limit_denominator(1000).denominator for share in shares]
    return math.lcm(ROWS, *whole, *parts)


def tried(name: str, source: Source, steps: Sequence[Step], rows: int) -> Weight:
    """The steps on so many rows of the weight."""
    weight = source.weight or Dense(values=source.rows(rows))
    return stored_like(steps_on(name, weight, steps, None, weight), source.kept_in)


def runs(source: Source) -> list[nn.Module]:
    """The layers that run a source's weight."""
    head = nn.Linear(source.shape[1], 1, bias=False, device="meta")
    return [source.layer, head] if source.tied else [source.layer]


def kernel_of(layer: nn.Module, weight: Weight) -> str:
    """What would run the weight: the name of a kernel's file, or `decoded` where it becomes dense at every call."""
    if isinstance(layer, nn.Embedding | CompressedEmbedding):
        return "rows"
    compressed = wrap(layer, weight)
    if not isinstance(compressed, CompressedLinear) or not isinstance(compressed.matrix, Frozen):
        return "decoded"
    compressed.bias = None
    (lowered,) = lower(nn.Sequential(compressed)).children()
    return "decoded" if isinstance(lowered, CompressedLinear) else type(lowered).__module__.rpartition(".")[2]
