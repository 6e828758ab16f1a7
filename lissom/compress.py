"""The conductor: look at what goes through the layers, act on their weights, pass on.

`compress_model` and `quantize_model` work on any nn.Module in memory; `stream_checkpoint` streams a language model
part by part.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lissom.calibrate import batches, call, observe
from lissom.calibrate.observe import Collected
from lissom.calibrate.stream import Stream
from lissom.errors import DataError, ModelError, RecipeError
from lissom.formats import CompressedLayer, Dense, Frozen, Masked, Palette, Trainable, Weight, matrix_of, wrap
from lissom.models import Checkpoint, compressible
from lissom.models.families import at, put
from lissom.statistics import Statistic
from lissom.techniques.contract import apply, check, needs
from lissom.types import Recipe, Step

DEFAULT = (
    Step(technique="sparsegpt", knobs={"sparsity": 0.4}),
    Step(technique="kmeans", knobs={"bits": 4, "rows": 0}),
)


def compress_model(model: nn.Module, data: Any = None, *, steps: Sequence[Any] = DEFAULT) -> nn.Module:
    """A copy of `model` with its layers compressed; by default two in five weights pruned, the rest sharing 16 values.

    The result is trainable: gradients reach what its format can move, and it stays in its format. The model given is
    left as it is.

    Args:
        model: any torch module; its Linear, Conv and Embedding layers are the ones that steps can name.
        data: batches to calibrate on, as a tensor, (inputs, targets), or an iterable of either. Without data every
            input is taken to matter alike.
        steps: a recipe's steps, as `Step` or as mappings such as {"layers": "*", "technique": "gptq", "bits": 4}.

    Raises:
        RecipeError: a step names a technique, knob or value that cannot work, or layers that are not there.
        ModelError: the model has no layer that can be compressed.
        DataError: the data is in no form described above.
    """
    recipe = Recipe.of(list(steps))
    compressed = copy.deepcopy(model)
    layers = compressible(compressed)
    if not layers:
        raise ModelError(f"{type(model).__name__} has no Linear, Conv or Embedding layer of its own to compress")
    if "" in layers:
        raise ModelError(f"{type(model).__name__} is a layer by itself; put it in torch.nn.Sequential to compress it")
    plan = match(recipe, layers)
    statistics = {} if data is None else look(compressed, layers, plan, data)
    replace(compressed, act(layers, plan, statistics), layers, trainable=True)
    return compressed


def quantize_model(model: nn.Module, data: Any = None, *, bits: int | str = 8) -> nn.Module:
    """A copy of `model` with integer weights of 8, 4, 3 or 2 bits, or "binary" ones; trainable, straight through.

    Pruned weights stay zero, shared weights stay shared. With data, 4 bits and fewer are rounded by GPTQ, otherwise to
    the nearest point of a grid with a searched range. Below 8 bits groups of up to 128 inputs have a scale of their
    own where the layer's width allows.

    Raises:
        RecipeError: the bits are none of those.
        ModelError, DataError: as for `compress_model`.
    """
    if bits not in (8, 4, 3, 2, "binary"):
        raise RecipeError(f'quantize_model: bits={bits!r} is not possible; choose 8, 4, 3, 2 or "binary"')
    steps = [quantizing(name, layer, bits, data is not None) for name, layer in compressible(model).items()]
    return compress_model(model, data, steps=steps)


def quantizing(name: str, layer: nn.Module, bits: int | str, calibrated: bool) -> Step:
    """The step that suits one layer."""
    if bits == "binary":
        return Step(layers=name, technique="binary")
    weight = weight_of(layer)
    shared = isinstance(weight, Palette) and isinstance(bits, int) and weight.bits <= bits
    knobs: dict[str, Any] = {"bits": bits}
    if bits != 8 and not shared:
        knobs["group"] = next((size for size in (128, 64, 32) if weight.shape[1] % size == 0), 0)
    rounds_better = calibrated and bits != 8 and not shared and not isinstance(layer, nn.Embedding)
    return Step(layers=name, technique="gptq" if rounds_better else "rtn", knobs=knobs)


def match(recipe: Recipe, names: Mapping[str, Any] | Sequence[str]) -> dict[str, list[Step]]:
    """The steps of each layer, in order; layers that no step names are left out.

    Raises:
        RecipeError: a step is wrong in itself, or names no layer there is.
    """
    plan: dict[str, list[Step]] = {}
    for step in recipe.steps:
        check(step)
        named = [name for name in names if fnmatchcase(name, step.layers)]
        if not named:
            raise RecipeError(f"recipe: layers={step.layers!r} names no layer; there are {_some(names)}")
        for name in named:
            plan.setdefault(name, []).append(step)
    return plan


def _some(names: Mapping[str, Any] | Sequence[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def wanted(plan: Mapping[str, Sequence[Step]]) -> dict[str, set[type[Statistic]]]:
    """The statistics that each layer's steps read."""
    return {name: {kind for step in steps for kind in needs(step.technique)} for name, steps in plan.items()}


def look(
    model: nn.Module, layers: Mapping[str, nn.Module], plan: Mapping[str, list[Step]], data: Any
) -> dict[str, Collected]:
    """Run the data through the model, in evaluation mode, and collect what the plan needs.

    Raises:
        DataError: there is not one batch.
    """
    training = [part for part in model.modules() if part.training]
    model.eval()
    seen = 0
    with observe(layers, wanted(plan)) as collected, torch.no_grad():
        for batch in batches(data):
            call(model, batch)
            seen += 1
    for part in training:  # one by one, for some parts may have been set to evaluate before
        part.training = True
    if not seen:
        raise DataError("data: no examples are in it (an iterator can be read once only; give a list or a DataLoader)")
    return collected


def act(
    layers: Mapping[str, nn.Module], plan: Mapping[str, list[Step]], statistics: Mapping[str, Collected]
) -> dict[str, Weight]:
    """The new weight of every layer in the plan; layers that share a matrix get the same one."""
    done: dict[int, Weight] = {}
    weights: dict[str, Weight] = {}
    for name, steps in plan.items():
        weights[name] = done.get(matrix_id(layers[name])) or steps_on(name, layers[name], steps, statistics.get(name))
        done[matrix_id(layers[name])] = weights[name]
    return weights


@torch.no_grad()
def steps_on(name: str, layer: nn.Module, steps: Sequence[Step], found: Collected | None) -> Weight:
    """One layer's weight after its steps; where nothing was seen of its input, all features count alike."""
    weight = weight_of(layer)
    inputs = weight.shape[1]
    for step in steps:
        statistics = {kind: (found or {}).get(kind) or kind.blank(inputs) for kind in needs(step.technique)}
        weight = apply(step, name, weight, statistics)
    return weight


def weight_of(layer: nn.Module) -> Weight:
    """A layer's weight in the format it has."""
    return layer.weight if isinstance(layer, CompressedLayer) else Dense(values=matrix_of(layer))


def matrix_id(layer: nn.Module) -> int:
    """Equal for layers that share a matrix."""
    return id(layer.matrix if isinstance(layer, CompressedLayer) else layer.weight)


def replace(
    model: nn.Module, weights: Mapping[str, Weight], layers: Mapping[str, nn.Module], *, trainable: bool
) -> None:
    """Put compressed layers in place, under every name they have; one weight of several layers stays one module."""
    held: dict[int, Frozen | Trainable] = {}
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for name, weight in weights.items():
        compressed = wrap(layers[name], weight, trainable=trainable)
        compressed.matrix = held.setdefault(id(weight), compressed.matrix)
        for same in names[layers[name]]:
            put(model, same, compressed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a language model, compressed: its weights by layer name, and its other tensors as they were."""

    name: str
    weights: dict[str, Weight]
    tensors: dict[str, Tensor]


def stream_checkpoint(checkpoint: Checkpoint, recipe: Recipe, windows: Int[Tensor, "n t"]) -> Iterator[Piece]:
    """Compress a language model part by part, in the order of its forward pass.

    One block is in memory at a time. A block's layers are calibrated on what the compressed blocks before it produce.
    `windows` (n windows of t tokens) may have no rows: then every input is taken to matter alike.

    Raises:
        RecipeError: as for `compress_model`; before anything is read.
    """
    stream = Stream(checkpoint, windows)
    plan = match(recipe, layer_names(checkpoint, stream.model))
    embedding = stream.embedding()
    yield compressed_part(stream, plan, checkpoint.family.embedding, embedding, {})
    stream.start(at(stream.model, checkpoint.family.embedding))
    for name, block in stream.blocks():
        layers = compressible(block, name)
        with observe(layers, wanted({n: steps for n, steps in plan.items() if n in layers})) as collected:
            if any(n in plan for n in layers):
                stream.see(name, block)
        yield compressed_part(stream, plan, name, block, collected)
    yield compressed_part(stream, plan, checkpoint.family.norm, stream.finish(), {})
    head = stream.head()
    if head is not None:
        layers = compressible(head, checkpoint.family.head)
        with observe(layers, wanted({n: plan[n] for n in layers if n in plan})) as collected, torch.no_grad():
            for hidden in stream.lots() if checkpoint.family.head in plan else ():
                head(hidden)
        yield compressed_part(stream, plan, checkpoint.family.head, head, collected)


def layer_names(checkpoint: Checkpoint, model: nn.Module) -> list[str]:
    """The layers that steps can name; a head that is tied to the embedding goes by the embedding's name."""
    tied = {checkpoint.family.head} if checkpoint.config.tie_word_embeddings else set()
    return [name for name in compressible(model) if name not in tied]


def compressed_part(
    stream: Stream, plan: Mapping[str, list[Step]], name: str, part: nn.Module, collected: Mapping[str, Collected]
) -> Piece:
    """Act on the layers of one part that the plan names, in the stream's model too, so that the data flows on so."""
    layers = {n: layer for n, layer in compressible(part, name).items() if n in plan}
    weights = act(layers, {n: plan[n] for n in layers}, collected)
    checkpoint = stream.checkpoint
    weights = {n: stored_like(weight, checkpoint.tensor(f"{n}.weight")) for n, weight in weights.items()}
    names = [n for n in (f"{name}.{own}" for own in part.state_dict()) if n.removesuffix(".weight") not in weights]
    replace(stream.model, weights, layers, trainable=False)
    return Piece(name=name, weights=weights, tensors={n: checkpoint.tensor(n) for n in names})


def stored_like(weight: Weight, original: Tensor) -> Weight:
    """Values that are kept in floating point take no more bytes than they had."""
    if isinstance(weight, Masked):
        return dataclasses.replace(weight, values=weight.values.to(original.dtype))
    return weight
