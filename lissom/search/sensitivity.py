"""Sensitivity: what every candidate for every layer would cost, foreseen from one pass over the data.

    error = tr((W - V) H (W - V)ᵀ) / tr(W H Wᵀ)                    H = E[x xᵀ]
    KL    = ½ tr(G (W - V) H (W - V)ᵀ)                             G = E[g gᵀ],  g = ∂ -log p(y) / ∂(W x),  y ~ p

The second is the quadratic of the Fisher information, since the gradient of KL(original ‖ compressed) is zero at the
original and its curvature E[g gᵀ] (Martens, JMLR 2020, arXiv:1412.1193, sections 5 and 9), in Kronecker's form
(Martens, Grosse, ICML 2015, arXiv:1503.05671, eq. 3). Of layers with many outputs only the diagonal of G is kept. The
labels y are drawn from the model's own predictions: the data needs none.

Shapes: o outputs, i inputs, n rows of an input, e entries of an embedding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lissom.calibrate import Batch, batches, observe
from lissom.calibrate.observe import CONVOLUTIONS, Collected, looks_up
from lissom.compress.layers import evaluating, steps_on, weight_of
from lissom.compress.stream import stored_like
from lissom.compress.taught import answer
from lissom.errors import DataError, ModelError, RecipeError
from lissom.formats import CompressedLayer, Weight
from lissom.models import compressible
from lissom.statistics import Gram, Moments
from lissom.types import Step

Steps = tuple[Step, ...]
WIDE = 4096  # outputs beyond which only the diagonal of G is kept


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


@dataclass(slots=True, kw_only=True)
class Seen:
    """What is remembered of a layer: its inputs, and how strongly the predictions hang on each output.

    An embedding's input is an index, of which there is nothing but how often each came: `power` of the entries.
    """

    inputs: Collected
    entries: Float[Tensor, " e"] | None
    pull: Float[Tensor, "o o"] | Float[Tensor, " o"]  # Σ g gᵀ over all rows, or its diagonal
    rows: int = 0


def sensitivity(
    model: nn.Module,
    data: Any,
    candidates: Mapping[str, Sequence[Steps]],
    *,
    floats: torch.dtype = torch.float32,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, tuple[Option, ...]]:
    """The options of each layer that `candidates` names.

    Layers that share their matrix share their fate: the first of them is named, and the cost of all is counted. A
    candidate that does not suit a layer (its group does not divide the inputs) is left out. `floats` is the type in
    which values that stay in floating point will be stored; only their bytes depend on it.

    Raises:
        ModelError: the model is compressed already, or has no such layer.
        RecipeError: no candidate suits a layer.
        DataError: there is not one batch.
    """
    layers = compressible(model)
    for name in candidates:
        if name not in layers:
            raise ModelError(f"{type(model).__name__} has no layer {name!r}; it has {', '.join(list(layers)[:4])} ...")
    sharing = sharers(layers)
    wanted = {same: layers[same] for name in candidates for same in sharing[name]}
    seen, predictions = look(model, wanted, data, seed)
    found = {}
    for name, tried in candidates.items():
        uses = [seen[same] for same in sharing[name]]
        found[name] = options(name, weight_of(layers[name]), tried, uses, predictions, floats)
        progress(name)
    return found


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
) -> tuple[Option, ...]:
    """What each candidate would make of a layer; its steps see what compressing the layer would let them see."""
    found, refusals = list[Option](), list[RecipeError]()
    w = original.dense()
    whole = sum(float(energy(w, use).sum()) for use in uses)
    for steps in candidates:
        try:
            weight = steps_on(name, original, steps, uses[0].inputs, original)
        except RecipeError as refusal:
            refusals.append(refusal)
            continue
        off = w - weight.dense()
        kl = sum(harm(off, use) for use in uses) / 2 / predictions
        error = sum(float(energy(off, use).sum()) for use in uses) / max(whole, torch.finfo(torch.float32).tiny)
        nbytes = stored_like(weight, floats).nbytes
        found.append(Option(steps=steps, nbytes=nbytes, error=error, kl=kl))
    if not found:
        raise refusals[0] if refusals else RecipeError(f"sensitivity: there is no candidate for {name}")
    return tuple(found)


def energy(d: Float[Tensor, "o i"], use: Seen) -> Float[Tensor, " k"]:
    """(D H Dᵀ)_oo; for an embedding, whose rows are what comes out, Σ_e P(e) D_e² for each of its features."""
    if use.entries is not None:
        return (use.entries / max(use.rows, 1)) @ d.square()
    gram = use.inputs[Gram]
    assert isinstance(gram, Gram)
    return (d @ gram.mean * d).sum(1)


def harm(d: Float[Tensor, "o i"], use: Seen) -> float:
    """Σ tr(G D H Dᵀ) over all rows."""
    if use.pull.dim() == 1:
        return float((energy(d, use) * use.pull).sum())
    if use.entries is not None:
        return float(((d.T * (use.entries / max(use.rows, 1))) @ d * use.pull).sum())
    gram = use.inputs[Gram]
    assert isinstance(gram, Gram)
    return float((d @ gram.mean @ d.T * use.pull).sum())


def look(model: nn.Module, layers: Mapping[str, nn.Module], data: Any, seed: int) -> tuple[dict[str, Seen], int]:
    """One pass forward and back over the data; what was seen of each layer, and how many predictions were made.

    Raises:
        DataError: there is not one batch.
    """
    generator, predictions = torch.Generator().manual_seed(seed), 0
    kinds = {name: {Gram, Moments} for name in layers}
    with evaluating(model), observe(layers, kinds) as inputs, gradients(model, layers) as seen, torch.enable_grad():
        for batch in batches(data):
            predictions += pull_back(said_by(model, batch), generator)
    if not predictions:
        raise DataError("data: no examples are in it (an iterator can be read once only; give a list or a DataLoader)")
    for name, found in seen.items():
        found.inputs.update(inputs.get(name, {}))
    return seen, predictions


def said_by(model: nn.Module, batch: Batch) -> Float[Tensor, "n c"]:
    """The logits of all predictions of a batch."""
    return answer(model, batch).flatten(0, -2)


def pull_back(logits: Float[Tensor, "n c"], generator: torch.Generator) -> int:
    """The gradient of -log p(y), y drawn from p, summed over the predictions; how many there are."""
    y = torch.multinomial(logits.detach().float().softmax(-1), 1, generator=generator).flatten()
    F.cross_entropy(logits, y, reduction="sum").backward()
    return len(y)


@contextmanager
def gradients(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """Within the block, every pass back adds to the pull on each layer's outputs; parameters get no gradients."""
    seen = {name: nothing(layer) for name, layer in layers.items()}
    handles = [layer.register_forward_hook(listener(seen[name])) for name, layer in layers.items()]
    parameters = {p: p.requires_grad for p in model.parameters()}
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for p, needed in parameters.items():
            p.requires_grad_(needed)


def nothing(layer: Any) -> Seen:
    """What is known of a layer before any data."""
    o, i = weight_of(layer).shape
    entries = torch.zeros(o) if looks_up(layer) else None
    width = o if entries is None else i
    return Seen(inputs={}, entries=entries, pull=torch.zeros((width, width) if width <= WIDE else (width,)))


def listener(seen: Seen) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """A hook that adds zeros to the output, so as to have its gradient whatever else needs one."""

    def hear(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        if seen.entries is not None:
            seen.entries += torch.bincount(arguments[0].flatten(), minlength=len(seen.entries))
        zeros = torch.zeros_like(output, requires_grad=True)
        zeros.register_hook(lambda g: add(seen, layer, g))
        return output + zeros

    return hear


def add(seen: Seen, layer: nn.Module, g: Tensor) -> None:
    """Take in the gradients of a layer's output; those of a convolution have their channels first."""
    rows = g.movedim(-len(layer.kernel_size) - 1, -1) if isinstance(layer, CONVOLUTIONS) else g
    rows = rows.reshape(-1, rows.shape[-1]).float()
    seen.pull += rows.T @ rows if seen.pull.dim() == 2 else rows.square().sum(0)
    seen.rows += len(rows)
