"""Sensitivity: what every candidate for every layer would cost, foreseen from one pass over the data.

    error = tr((W - V) H (W - V)ᵀ) / tr(W H Wᵀ)                    H = E[x xᵀ]
    KL    = ½ tr(G (W - V) H (W - V)ᵀ)                             G = E[g gᵀ],  g = ∂ -log p(y) / ∂(W x),  y ~ p

The second is the quadratic of the Fisher information, since the gradient of KL(original ‖ compressed) is zero at the
original and its curvature E[g gᵀ] (Martens, JMLR 2020, arXiv:1412.1193, sections 5 and 9), in Kronecker's form
(Martens, Grosse, ICML 2015, arXiv:1503.05671, eq. 3). Of layers with many outputs only the diagonal of G is kept. The
labels y are drawn from the model's own predictions: the data needs none.

Of matrices of a million weights and more both are estimated, by k vectors z of random signs (Hutchinson, Commun. Stat.
Simul. 1989), the same for all forms of a layer; to some hundredths, and with a tenth of the multiplications:

    tr(D H Dᵀ) ≈ Σ_z (zᵀD) H (zᵀD)ᵀ / k        tr(G D H Dᵀ) = tr(Rᵀ D H Dᵀ R),  G = R Rᵀ

Shapes: o outputs, i inputs, n rows of an input, e entries of an embedding, k random vectors.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lissom.calibrate import batches
from lissom.calibrate.data import device_of
from lissom.calibrate.gradients import Pull, end_loss, hear, outputs
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
from lissom.statistics import Gram, Statistic, strip_of
from lissom.techniques.contract import grain, needed
from lissom.techniques.sweep import remembered
from lissom.types import Step

Steps = tuple[Step, ...]
LARGE, DRAWN = 2**20, 128  # weights from which on vectors are drawn, and how many
RIDGES = (1e-6, 1e-4, 1e-2)  # of the mean of G's diagonal: what is added to it until it has a root


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
    """A use of a matrix: what it is given, and how strongly the predictions hang on what comes out."""

    inputs: Collected
    pull: Pull

    def by_signs(self) -> "Seen | Drawn":
        """The same with what is drawn, where the matrix is so large that it is estimated."""
        g = self.pull.ggt
        if self.pull.entries is not None or len(gram_of(self)) * len(g) < LARGE:
            return self
        return Drawn(inputs=self.inputs, pull=self.pull, felt=felt(g) if g.dim() == 2 else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn(Seen):
    """The same, and Zᵀ R where G is full."""

    felt: Float[Tensor, "k o"] | None


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
    """The statistics of a layer that its candidates read, and the Gram that they are judged by.

    Raises:
        RecipeError: one of them acts on more than a layer.
    """
    steps = [step for tried in candidates for step in tried]
    for step in steps:
        if grain(step.technique) != "layer":
            raise RecipeError(f"sensitivity: {step.technique} acts on more than one layer; try gptq, rtn or wanda")
    return {Gram, *(kind for step in steps for kind in needed(step))}


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
    uses = [use.by_signs() for use in uses]
    whole = sum(told(rows.dense(), first, use)[0] for first, rows in lots(original, (), uses) for use in uses)
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

    `whole` is tr(W H Wᵀ) of all uses.
    """
    lost, harmed, made = 0.0, 0.0, list[Weight]()
    try:
        for first, rows in lots(original, steps, uses) if steps else ():
            weight = steps_on(name, rows, steps, uses[0].inputs, rows)
            off = rows.dense() - weight.dense()
            for use in uses:
                error, kl = told(off, first, use)
                lost, harmed = lost + error, harmed + kl
            made.append(stored_like(weight, floats))
    except RecipeError as refusal:
        return refusal.with_traceback(None)  # which would keep alive what it was working on
    weight = stacked(made) if made else stored_like(original, floats)
    made.clear()
    error = lost / max(whole, torch.finfo(torch.float32).tiny)
    made_of_it = Option(steps=steps, nbytes=weight.nbytes, error=error, kl=harmed / 2 / predictions)
    keep(name, number, made_of_it, weight)
    return made_of_it


def lots(original: Weight, steps: Steps, uses: Sequence[Seen]) -> Iterator[tuple[int, Weight]]:
    """A matrix in lots of rows, each with the number of its first row; one lot unless it is large and that may be."""
    o, i = original.shape
    lot = lot_of(o, i, steps)
    joint = any(use.pull.entries is None and use.pull.ggt.dim() == 2 for use in uses)  # rows that count in pairs
    if lot == o or joint or not isinstance(original, Dense):
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


def told(d: Float[Tensor, "m i"], first: int, use: Seen) -> tuple[float, float]:
    """tr(D H Dᵀ) and tr(G D H Dᵀ) of some rows, from the `first` on; all of them where G is full.

    Of an embedding, which has no H and whose rows are what comes out, Σ_e P(e) D_e² and Σ_e P(e) D_eᵀ G D_e.
    """
    pull = use.pull
    if pull.entries is not None:
        share = pull.entries[first : first + len(d)] / max(pull.n, 1)
        came = share > 0
        said = d[came] * share[came].sqrt().unsqueeze(1)
        energies = said.square().sum(0)
        full = pull.ggt.dim() == 2
        return float(energies.sum()), float(((said @ pull.ggt) * said).sum() if full else energies @ pull.ggt)
    h = gram_of(use)
    if isinstance(use, Drawn):
        z = signs(first, len(d), d.device)
        rooted = use.felt if use.felt is not None else z * pull.ggt[first : first + len(d)].sqrt()
        seen = torch.cat([z, rooted]) @ d
        both = ((seen @ h) * seen).sum(1)
        return float(both[:DRAWN].sum()), float(both[DRAWN:].sum())
    heard = d @ h
    energies = (heard * d).sum(1)
    if pull.ggt.dim() == 2:
        return float(energies.sum()), paired(pull.ggt, d, heard)
    return float(energies.sum()), float(energies @ pull.ggt[first : first + len(d)])


def gram_of(use: Seen) -> Float[Tensor, "i i"]:
    """H."""
    gram = use.inputs[Gram]
    assert isinstance(gram, Gram)
    return gram.mean


def signs(first: int, rows: int, device: torch.device) -> Float[Tensor, "k m"]:
    """The vectors' parts for some rows, over √k."""
    generator = torch.Generator().manual_seed(first)
    drawn = torch.randint(2, (DRAWN, rows), generator=generator, device="cpu")
    return ((2 * drawn - 1) / math.sqrt(DRAWN)).to(device)


def felt(g: Float[Tensor, "o o"]) -> Float[Tensor, "k o"]:
    """Zᵀ R of all rows; G, perhaps of few gradients, is raised by the least ridge that gives it a root."""
    whole = g.diagonal().mean()
    for ridge in RIDGES:
        lower, failed = torch.linalg.cholesky_ex(g + ridge * whole * torch.eye(len(g), device=g.device))
        if not failed:
            rooted: Tensor = signs(0, len(g), g.device) @ lower.T
            return rooted
    return signs(0, len(g), g.device) * g.diagonal().clamp(min=0).sqrt()


def paired(g: Float[Tensor, "o o"], d: Float[Tensor, "o i"], dh: Float[Tensor, "o i"]) -> float:
    """tr(G D H Dᵀ), strip by strip of G from the diagonal on: what lies below it counts as what lies above.

    Eight strips do 9/16 of the multiplications of the whole.
    """
    total, strip = 0.0, strip_of(len(g))
    for first in range(0, len(g), strip):
        here, after = slice(first, first + strip), slice(first + strip, None)
        felt = (g[here, here] @ d[here]).addmm_(g[here, after], d[after], alpha=2)
        total += float((felt * dh[here]).sum())
    return total


def look(
    model: nn.Module, layers: Mapping[str, nn.Module], kinds: Mapping[str, set[type[Statistic]]], data: Any, seed: int
) -> tuple[dict[str, Seen], int]:
    """What was seen of each layer that the data reaches, and how many predictions were made.

    Raises:
        DataError: there is not one batch.
    """
    lots = list(batches(data))
    inputs = inputs_of(model, layers, kinds, lots)
    generator, predictions, pulls = torch.Generator(device_of(model)).manual_seed(seed), 0, dict[str, Pull]()
    for batch in lots:
        with evaluating(model), outputs(layers) as taken, torch.enable_grad():
            logits = answer(model, batch)
            hear(pulls, taken, end_loss(logits, True, generator), new=Pull.of)
            predictions += logits[..., 0].numel()
    return {name: Seen(inputs=inputs.get(name, {}), pull=pull) for name, pull in pulls.items()}, predictions
