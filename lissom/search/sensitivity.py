"""Sensitivity: what every candidate for every layer would cost, foreseen from one pass over the data.

    error = Σ ‖D x‖² / Σ ‖W x‖²                                     D = W - (what a candidate makes of it)
    KL    = ½ Σ (g · D x)² per prediction                           g = ∂ uᵀf / ∂ (W x)

over rows x that the layer is given and the slopes g there, with the vectors u of `end_loss`. The second is the
quadratic of the Fisher information, since the gradient of KL(original ‖ compressed) is zero at the original (Martens,
JMLR 2020, arXiv:1412.1193, sections 5 and 9), with what the rows of an example do together left out. That slopes hang
on the inputs that they come with is in it, as it is not in products of second moments (Kronecker's form; Martens,
Grosse, ICML 2015, arXiv:1503.05671, eq. 3). Rows are drawn from all; the data needs no labels.

Shapes: o outputs, i inputs, n rows, m of the outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lissom.calibrate import batches
from lissom.calibrate.data import device_of
from lissom.calibrate.gradients import Rows, end_loss, hear, outputs
from lissom.calibrate.observe import Collected
from lissom.compress.layers import evaluating, steps_on
from lissom.compress.layers import look as inputs_of
from lissom.compress.ram import lot_of
from lissom.compress.stream import stored_like
from lissom.compress.taught import answer
from lissom.errors import DataError, ModelError, RecipeError
from lissom.formats import CompressedLayer, Dense, Weight
from lissom.models import compressible, weight_of
from lissom.models.apart import set_apart
from lissom.progress import Progress, Tell, quiet
from lissom.statistics import Statistic
from lissom.techniques.contract import grain, needed
from lissom.techniques.sweep import remembered
from lissom.types import Step

Steps = tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What a layer would become by some steps, and what that would cost."""

    steps: Steps
    nbytes: int
    error: float
    kl: float

    def as_dict(self) -> dict[str, Any]:
        """For programs and files."""
        steps = [{k: v for k, v in step.as_dict().items() if k != "layers"} for step in self.steps]
        return {"steps": steps, "nbytes": self.nbytes, "error": self.error, "kl": self.kl}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Option":
        """The inverse of `as_dict`."""
        steps = tuple(Step.of(step) for step in given["steps"])
        return cls(steps=steps, nbytes=given["nbytes"], error=given["error"], kl=given["kl"])


Found = tuple[Option | RecipeError, ...]  # what became of each candidate: an option, or why it does not suit
Keep = Callable[[str, int, Option, Weight], None]  # takes a layer's name, the number of the candidate, and what it made


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A use of a matrix: what its candidates read, and rows that it is given, with the slopes at what comes of them."""

    inputs: Collected
    rows: Rows

    def through(self, d: Float[Tensor, "m i"], first: int) -> tuple[float, Float[Tensor, " n"]]:
        """Σ ‖D x‖² of all rows, and g · D x of those that are kept, for the rows of a matrix from the `first` on."""
        given, slopes = self.rows.together
        if not given.is_floating_point():  # entries of an embedding, all of whose columns come out
            here = (given >= first) & (given < first + len(d))
            moved = torch.zeros(len(given), d.shape[1], device=d.device)
            moved[here] = d[given[here] - first]
        elif given.dim() == 3:
            moved = torch.einsum("ngi,goi->ngo", given, d.unflatten(0, (given.shape[1], -1))).flatten(1)
        else:
            moved, slopes = given @ d.T, slopes[:, first : first + len(d)]
        return float(moved.square().sum()) / self.rows.kept, (moved * slopes).sum(1)


def sensitivity(
    model: nn.Module,
    data: Any,
    candidates: Mapping[str, Sequence[Steps]],
    *,
    floats: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Tell = quiet,
) -> dict[str, tuple[Option, ...]]:
    """The options of each layer that `candidates` names.

    Layers that share their matrix share their fate: the first of them is named, and the cost of all is counted. A
    candidate that does not suit a layer (its group does not divide the inputs) is left out. `floats` is the type in
    which values that stay in floating point will be stored; only their bytes depend on it.

    Raises:
        ModelError: the model is compressed already, or has no such layer.
        RecipeError: no candidate suits a layer.
        DataError: there is not one batch, or none reaches a layer.
    """
    model = set_apart(model)
    layers = compressible(model)
    for name in candidates:
        if name not in layers:
            raise ModelError(f"{type(model).__name__} has no layer {name!r}; it has {', '.join(list(layers)[:4])} ...")
    sharing = sharers(layers)
    kinds = {same: kinds_of(tried) for name, tried in candidates.items() for same in sharing[name]}
    seen, predictions = look(model, {name: layers[name] for name in kinds}, kinds, data, seed)
    found = {}
    for name, tried in candidates.items():
        uses = [seen[same] for same in sharing[name] if same in seen]
        found[name] = fitting(name, options(name, weight_of(layers[name]), tried, uses, predictions, floats))
        progress(Progress(stage="sensitivity", text=name, done=len(found), total=len(candidates)))
    return found


def kinds_of(candidates: Sequence[Steps]) -> set[type[Statistic]]:
    """The statistics of a layer that its candidates read.

    Raises:
        RecipeError: one of them acts on more than a layer.
    """
    steps = [step for tried in candidates for step in tried]
    for step in steps:
        if grain(step.technique) != "layer":
            raise RecipeError(f"sensitivity: {step.technique} acts on more than one layer; try gptq, rtn or wanda")
    return {kind for step in steps for kind in needed(step)}


def fitting(name: str, found: Found) -> tuple[Option, ...]:
    """The candidates that suit a layer.

    Raises:
        RecipeError: there is none.
    """
    suiting = tuple(option for option in found if isinstance(option, Option))
    if not suiting:
        refusals = [option for option in found if isinstance(option, RecipeError)]
        raise refusals[0] if refusals else RecipeError(f"sensitivity: there is no candidate for {name}")
    return suiting


def sharers(layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """For each layer all that have the same matrix."""
    compressed = [name for name, layer in layers.items() if isinstance(layer, CompressedLayer)]
    if compressed:
        raise ModelError(f"{compressed[0]} is compressed already; sensitivity is that of an original model")
    return {
        name: [other for other, same in layers.items() if same.weight is layer.weight] for name, layer in layers.items()
    }


@torch.no_grad()
def options(
    name: str,
    original: Weight,
    candidates: Sequence[Steps],
    uses: Sequence[Seen],
    predictions: int,
    floats: torch.dtype,
    keep: Keep = lambda name, number, option, weight: None,
) -> Found:
    """What each candidate would make of a layer; its steps see what compressing the layer would let them see.

    What a candidate makes is given to `keep`.

    Raises:
        DataError: the layer was not used.
    """
    if not uses:
        raise DataError(f"data: {name} is not used when the model runs on it; leave it out, or give other data")
    whole = sum(use.through(rows.dense(), first)[0] for first, rows in lots(original, (), uses) for use in uses)
    with remembered():
        return tuple(
            option(name, original, number, steps, uses, whole, predictions, floats, keep)
            for number, steps in enumerate(candidates)
        )


def option(
    name: str,
    original: Weight,
    number: int,
    steps: Steps,
    uses: Sequence[Seen],
    whole: float,
    predictions: int,
    floats: torch.dtype,
    keep: Keep,
) -> Option | RecipeError:
    """What one candidate would make of a layer; of a large one whose rows are made each by itself some at a time.

    `whole` is Σ ‖W x‖² of all uses.
    """
    lost, made = 0.0, list[Weight]()
    moved = [torch.zeros((), device=original.device) for _ in uses]
    try:
        for first, rows in lots(original, steps, uses) if steps else ():
            weight = steps_on(name, rows, steps, uses[0].inputs, rows)
            off = rows.dense() - weight.dense()
            for k, use in enumerate(uses):
                power, own = use.through(off, first)
                lost, moved[k] = lost + power, moved[k] + own
            made.append(stored_like(weight, floats))
    except RecipeError as refusal:
        return refusal.with_traceback(None)  # which would keep alive what it was working on
    weight = stacked(made) if made else stored_like(original, floats)
    made.clear()
    error = lost / max(whole, torch.finfo(torch.float32).tiny)
    harmed = sum(float(own.square().sum()) / use.rows.kept for own, use in zip(moved, uses, strict=True))
    made_of_it = Option(steps=steps, nbytes=weight.nbytes, error=error, kl=harmed / 2 / predictions)
    keep(name, number, made_of_it, weight)
    return made_of_it


def lots(original: Weight, steps: Steps, uses: Sequence[Seen]) -> Iterator[tuple[int, Weight]]:
    """A matrix in lots of rows, each with the number of its first row; one lot unless it is large and that may be.

    It may not be of a convolution with several groups, each of which has inputs of its own.
    """
    o, i = original.shape
    lot = lot_of(o, i, steps)
    if lot == o or not isinstance(original, Dense) or any(use.rows.together[0].dim() == 3 for use in uses):
        yield 0, original
        return
    for first in range(0, o, lot):
        yield first, replace(original, values=original.values[first : first + lot])


def stacked(made: Sequence[Weight]) -> Weight:
    """Lots of rows as one matrix."""
    if len(made) == 1:
        return made[0]
    parts = [weight.parts() for weight in made]
    whole = {name: torch.cat([own[name] for own in parts]) for name in parts[0]}
    spec = {**made[0].spec(), "shape": [sum(weight.shape[0] for weight in made), made[0].shape[1]]}
    return type(made[0]).of_parts(spec, whole)


def look(
    model: nn.Module, layers: Mapping[str, nn.Module], kinds: Mapping[str, set[type[Statistic]]], data: Any, seed: int
) -> tuple[dict[str, Seen], int]:
    """What was seen of each layer that the data reaches, and how many predictions were made.

    Raises:
        DataError: there is not one batch.
    """
    lots = list(batches(data))
    inputs = inputs_of(model, layers, kinds, lots)
    generator, predictions, found = torch.Generator(device_of(model)).manual_seed(seed), 0, dict[str, Rows]()
    for batch in lots:
        with evaluating(model), outputs(layers) as taken, torch.enable_grad():
            logits = answer(model, batch)
            hear(found, taken, end_loss(logits, True, generator), new=Rows.of)
            predictions += logits[..., 0].numel()
    return {name: Seen(inputs=inputs.get(name, {}), rows=rows) for name, rows in found.items()}, predictions
