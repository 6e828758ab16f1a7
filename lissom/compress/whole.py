"""Techniques that must see the whole model: what is asked of a recipe before them, how they run, what is told after."""

from collections.abc import Mapping, Sequence

from torch import nn

from lissom.compress.plan import Phase
from lissom.errors import RecipeError
from lissom.formats import CompressedLayer, Frozen, Trainable, Weight, freeze, unfreeze
from lissom.models import compressible
from lissom.models.families import FAMILIES, at, counted, put
from lissom.techniques import MODEL
from lissom.techniques.prune.blocks import Through
from lissom.techniques.quantize.tuned import Lots
from lissom.types import Step


def check_whole(plan: Sequence[Phase]) -> None:
    """See that steps which act on the whole model name no part of it.

    Raises:
        RecipeError: one does.
    """
    for step in (step for phase in plan if phase.grain in ("stream", "model") for step in phase.steps):
        if step.layers != "*":
            raise RecipeError(f"recipe: {step.technique} acts on the whole model; leave out layers={step.layers!r}")


def at_once(step: Step, model: nn.Module, originals: Mapping[str, Weight], lots: Lots) -> dict[str, Weight]:
    """Run a step on the whole model, whose latent weights begin as near to the original ones as they may.

    Returned are the original weights by the names that the layers have now.

    Raises:
        RecipeError: a knob does not suit the model.
    """
    before = compressible(model)
    frozen = [layer for layer in before.values() if isinstance(getattr(layer, "matrix", None), Frozen)]
    begin(model, originals)
    try:
        MODEL[step.technique](model, lots, **step.knobs)
    except RecipeError as error:
        raise RecipeError(f"{step.technique}: {error}") from None
    freeze(nn.ModuleList(frozen))
    settle(model)
    was = {layer: originals[name] for name, layer in before.items()}
    return {name: was[layer] for name, layer in compressible(model).items()}


def begin(model: nn.Module, originals: Mapping[str, Weight]) -> None:
    """Make all compressed layers trainable, their latent weights as near to the original ones as they may be."""
    unfreeze(model)
    for name, layer in compressible(model).items():
        if isinstance(layer, CompressedLayer) and isinstance(layer.matrix, Trainable):
            layer.matrix.near(originals[name].dense())


def settle(model: nn.Module) -> None:
    """Let a language model forget the blocks that were removed, and its config say how many and how wide they are."""
    config = getattr(model, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is None or not any(name == family.blocks for name, _ in model.named_modules()):
        return
    blocks = list(at(model, family.blocks).children())
    stay = [number for number, block in enumerate(blocks) if not isinstance(block, Through)]
    put(model, family.blocks, nn.ModuleList(blocks[number] for number in stay))
    for number, block in enumerate(at(model, family.blocks).children()):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number  # type: ignore[assignment]
    hidden = at(model, family.norm).weight.shape[0]  # type: ignore[index]
    head = at(model, f"{family.blocks}.0.{family.attention}").head_dim
    for name, value in (counted(config, stay) | {"hidden_size": hidden, "head_dim": head}).items():
        setattr(config, name, value)
