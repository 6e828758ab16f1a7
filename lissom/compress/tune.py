"""Block techniques: weights that move together until a block says again what it said before."""

from collections.abc import Mapping

from torch import nn

from lissom.compress.plan import Phase
from lissom.errors import RecipeError
from lissom.formats import CompressedLayer, Trainable, Weight, freeze, unfreeze
from lissom.models import compressible
from lissom.techniques import TECHNIQUES
from lissom.techniques.quantize.tuned import Lots
from lissom.types import Step


def tune(module: nn.Module, phase: Phase, originals: Mapping[str, Weight], lots: Lots, prefix: str = "") -> None:
    """Run a phase's steps on a module; of its layers those move that the step names, and no others.

    Raises:
        RecipeError: a step names layers that no step before it has compressed.
    """
    for step in phase.steps:
        layers = {
            name: layer for name, layer in compressible(module, prefix).items() if step in phase.plan.get(name, ())
        }
        if layers:
            one_step(step, module, layers, originals, lots)


def one_step(
    step: Step, module: nn.Module, layers: Mapping[str, nn.Module], originals: Mapping[str, Weight], lots: Lots
) -> None:
    """Make the step's layers trainable, from as near to the original weights as they are, and let it move them."""
    plain = [name for name, layer in layers.items() if not isinstance(layer, CompressedLayer)]
    if plain:
        raise RecipeError(f"{step.technique}: {plain[0]} is not compressed yet; put a step before it that does")
    training = {layer for layer in compressible(module).values() if isinstance(getattr(layer, "matrix", 0), Trainable)}
    unfreeze(freeze(module))  # all of them, for gradients to pass; but only those of the step are asked for
    for part in (part for part in module.modules() if isinstance(part, Trainable)):
        part.requires_grad_(False)
    for name, layer in layers.items():
        layer.matrix.requires_grad_(True)
        layer.matrix.near(originals[name].dense())  # type: ignore[union-attr, operator]
    TECHNIQUES[step.technique](module, lots, **step.knobs)
    freeze(module)
    unfreeze(nn.ModuleList(training))
