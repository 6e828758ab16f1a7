"""Layer techniques: look at what goes through the layers, act on their weights, put the new ones in place."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from lissom.calibrate import Batch, batches, call, observe
from lissom.calibrate.data import device_of, first_call, logits_in
from lissom.calibrate.gradients import Heard, end_loss, hear, outputs
from lissom.calibrate.merge import merge_layers
from lissom.calibrate.observe import Collected, looks_up
from lissom.compress.plan import Phase, Plan
from lissom.errors import DataError, RecipeError
from lissom.formats import CompressedLayer, Weight
from lissom.models import compressible, weight_of
from lissom.models.experts import check_unrouted
from lissom.statistics import Fisher, Gram, Guided, Statistic
from lissom.techniques import SEVERAL
from lissom.techniques.contract import apply, needed
from lissom.types import Step

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

S = TypeVar("S", bound=Statistic)


def look(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    kinds: Mapping[str, set[type[Statistic]]],
    data: Any,
    group: "ProcessGroup | None" = None,
) -> dict[str, Collected]:
    """Run the data through the model, in evaluation mode, and collect statistics of these kinds.

    Where a group of processes is given, each with its share of the data, they become those of all of it.

    Raises:
        DataError: there is not one batch, or the model does not take it.
        RecipeError: something is to be heard of an expert, or by several processes.
    """
    check_alone(group, back(kinds))
    seen = 0
    check_unrouted(model, back(kinds))
    heard = listen(model, {name: layers[name] for name in back(kinds)}, data) if back(kinds) else {}
    weights = {name: own.weights() for name, own in heard.items()}
    with evaluating(model), observe(layers, kinds, weights) as collected, torch.no_grad():
        for batch in batches(data):
            (call if seen else first_call)(model, batch)
            seen += 1
    if not seen:
        raise DataError("data: no examples are in it (an iterator can be read once only; give a list or a DataLoader)")
    if group is not None:
        merge_layers(collected, layers, kinds, group)
    return with_fisher(collected, heard)


def check_alone(group: "ProcessGroup | None", heard: Sequence[str], learns: bool = False) -> None:
    """See that several processes, each with its share of the data, can do what a recipe asks for.

    Raises:
        RecipeError: something is to be heard of the end loss, or a step learns.
    """
    if group is not None and heard:
        raise RecipeError("recipe: what a step hears of the end loss is not merged; give one process all of the data")
    if group is not None and learns:
        raise RecipeError("recipe: a step that learns is for one process; let several learn by recover_model")


def back(kinds: Mapping[str, set[type[Statistic]]]) -> list[str]:
    """The layers of which something must be heard on the way back from the loss."""
    return [name for name, wanted_kinds in kinds.items() if wanted_kinds & {Fisher, Guided}]


def with_fisher(collected: Mapping[str, Collected], heard: Mapping[str, Heard]) -> dict[str, Collected]:
    """What was collected, and with it what was heard."""
    return {name: own | ({Fisher: heard[name].fisher} if name in heard else {}) for name, own in collected.items()}


def listen(model: nn.Module, layers: Mapping[str, nn.Module], data: Any) -> dict[str, Heard]:
    """Run the data through the model and back from its end loss, that of class scores where there are such.

    An embedding, whose input is an index, has no rows that could be loud.
    """
    heard: dict[str, Heard] = {}
    layers = {name: layer for name, layer in layers.items() if not looks_up(layer)}
    generator = torch.Generator(device_of(model)).manual_seed(0)
    for batch in batches(data):
        with evaluating(model), outputs(layers) as taken, torch.enable_grad():
            output = call(model, batch)
            hear(heard, taken, end_loss(said(model, output), scores(output, batch), generator), new=Heard.of)
    return heard


def scores(output: Any, batch: Batch) -> bool:
    """Whether a model's output is scores of classes, as far as can be told."""
    labels = batch[1] if isinstance(batch, tuple) and len(batch) > 1 else None
    return hasattr(output, "logits") or (isinstance(labels, Tensor) and not labels.is_floating_point())


def said(model: nn.Module, output: Any) -> Tensor:
    """The tensor of a model's output: its logits; else of several the first, or of those that have names all in a row.

    Raises:
        DataError: there is none.
    """
    found = logits_in(output)
    if isinstance(found, dict):
        parts = [part for part in found.values() if isinstance(part, Tensor) and part.is_floating_point()]
        if len(parts) > 1 and not hasattr(found, "to_tuple"):  # of transformers' the first is what they are for
            return torch.cat([part.flatten(1) if part.dim() > 1 else part.unsqueeze(-1) for part in parts], -1)
        found = parts[0] if parts else found
    if not isinstance(found, Tensor):
        raise DataError(f"{type(model).__name__} gives {type(output).__name__}, in which no tensor can be found")
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode; afterwards every part is in the mode it was in."""
    training = [name for name, part in model.named_modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        parts = dict(model.named_modules())
        for part in (parts[name] for name in training if name in parts):  # one by one: some may have been set apart
            if isinstance(part, CompressedLayer):  # perhaps new, with parts of its own
                part.train()
            part.training = True


def matrices(model: nn.Module, prefix: str = "") -> dict[str, Weight]:
    """The weights of the layers as they are now."""
    return {name: weight_of(layer) for name, layer in compressible(model, prefix).items()}


def act(
    layers: Mapping[str, nn.Module],
    plan: Plan,
    statistics: Mapping[str, Collected],
    originals: Mapping[str, Weight],
) -> dict[str, Weight]:
    """The new weight of every layer in the plan; layers that share a matrix get the same one."""
    done: dict[int, Weight] = {}
    weights: dict[str, Weight] = {}
    for name, steps in plan.items():
        same = matrix_id(layers[name])
        if same not in done:
            done[same] = steps_on(name, weight_of(layers[name]), steps, statistics.get(name), originals[name])
        weights[name] = done[same]
    return weights


@torch.no_grad()
def act_together(
    layers: Mapping[str, nn.Module], phase: Phase, statistics: Mapping[str, Collected]
) -> dict[str, Weight]:
    """The new weights of the layers that steps name together, each step those it names."""
    weights = {name: weight_of(layers[name]) for name in phase.plan}
    for step in phase.steps:
        named = [name for name, own in phase.plan.items() if step in own]
        grams = [(statistics.get(name) or {}).get(Gram) or blank(Gram, weights[name]) for name in named]
        try:
            found = SEVERAL[step.technique]([(weights[n], x) for n, x in zip(named, grams, strict=True)], **step.knobs)
        except RecipeError as error:
            raise RecipeError(f"{step.technique}: {error} (layers={step.layers!r})") from None
        weights |= zip(named, found, strict=True)
    return weights


@torch.no_grad()
def steps_on(name: str, weight: Weight, steps: Sequence[Step], found: Collected | None, original: Weight) -> Weight:
    """One layer's weight after its steps; where nothing was seen of its input, all features count alike."""
    for step in steps:
        statistics = {kind: (found or {}).get(kind) or blank(kind, weight) for kind in needed(step)}
        weight = apply(step, name, weight, original, statistics)
    return weight


def blank(kind: type[S], weight: Weight) -> S:
    """What to assume of a layer's inputs, or of its outputs, where nothing was seen of them."""
    outputs, inputs = weight.shape
    return kind.blank(outputs if kind is Fisher else inputs, weight.device)


def matrix_id(layer: nn.Module) -> int:
    """Equal for layers that share a matrix."""
    return id(layer.matrix if isinstance(layer, CompressedLayer) else layer.weight)
