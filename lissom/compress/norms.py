"""Batch norms behind layers, told what has become of these: techniques of norms."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from lissom.calibrate import Batch
from lissom.calibrate.norms import norms_behind
from lissom.calibrate.observe import Collected
from lissom.compress.layers import blank
from lissom.compress.plan import Phase, Plan
from lissom.compress.reshape import few
from lissom.errors import RecipeError
from lissom.formats import Weight
from lissom.models import compressible, weight_of
from lissom.models.apart import set_apart
from lissom.statistics import Gram, Statistic
from lissom.techniques import NORM
from lissom.techniques.recover.norms import Norm
from lissom.types import Step

Look = Callable[[nn.Module, Mapping[str, nn.Module], Plan], Mapping[str, Collected]]  # what layers of a model are given


@torch.no_grad()
def tell_norms(
    model: nn.Module,
    original: nn.Module,
    phase: Phase,
    batch: Batch | None,
    originals: Mapping[str, Weight],
    look: Look,
) -> None:
    """Run a phase's steps on the norms behind the layers that they name.

    The inputs are those that the original gives its layers. Layers whose channels are not what they were in it are
    left as they are.

    Raises:
        RecipeError: there is nothing to run the model on, or no norm is behind the layers of a step.
    """
    if batch is None:
        raise RecipeError(
            f"recipe: which norms follow layers of {type(model).__name__} is seen by running it; give data"
        )
    before, layers = set_apart(original), compressible(model)
    first = compressible(before)
    behind = {layer: norm for layer, norm in norms_behind(before, first, few(batch)).items() if layer in layers}
    for step in phase.steps:
        if not any(step in phase.plan.get(layer, ()) for layer in behind):
            raise RecipeError(f"recipe: {step.technique}: no batch norm alone is behind layers={step.layers!r}")
    plan = {
        layer: steps
        for layer, steps in phase.plan.items()
        if layer in behind and same(originals[layer], weight_of(first[layer]))
    }
    seen = look(before, {layer: first[layer] for layer in plan}, plan)
    for layer, steps in plan.items():
        norm, weight = model.get_submodule(behind[layer]), weight_of(layers[layer])
        gram = seen.get(layer, {}).get(Gram)
        told = remembered(before.get_submodule(behind[layer]))
        remember(norm, apply(steps[-1], layer, told, weight, originals[layer], gram))  # told once, however often named


def apply(step: Step, layer: str, norm: Norm, weight: Weight, original: Weight, gram: Statistic | None) -> Norm:
    """Run a step on the norm behind one layer; where nothing was seen, all features count alike.

    Raises:
        RecipeError: it does not suit the layer.
    """
    seen = gram if isinstance(gram, Gram) else blank(Gram, weight)
    try:
        return NORM[step.technique](norm, weight, original, seen, **step.knobs)
    except RecipeError as error:
        raise RecipeError(f"{step.technique}: {error} of {layer}") from None


def same(weight: Weight, other: Weight) -> bool:
    """Whether two matrices are equal."""
    return weight.shape == other.shape and bool(weight.dense().equal(other.dense()))


def remembered(norm: nn.Module) -> Norm:
    """What a norm remembers."""
    return Norm(mean=norm.get_buffer("running_mean"), variance=norm.get_buffer("running_var"))


def remember(norm: nn.Module, told: Norm) -> None:
    """Give a norm other tensors; those that it has may be another's too."""
    norm.running_mean, norm.running_var = told.mean, told.variance
