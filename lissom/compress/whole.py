"""Techniques that must see the whole model: what is asked of a recipe before them, and of a config after them."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lissom.compress.plan import Phase
from lissom.errors import RecipeError
from lissom.models.families import FAMILIES, at, put
from lissom.techniques.prune.blocks import Through


def check_whole(plan: Sequence[Phase]) -> None:
    """See that steps which act on the whole model name no part of it.

    Raises:
        RecipeError: one does.
    """
    for step in (step for phase in plan if phase.grain in ("stream", "model") for step in phase.steps):
        if step.layers != "*":
            raise RecipeError(f"recipe: {step.technique} acts on the whole model; leave out layers={step.layers!r}")


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


def counted(config: Any, stay: Sequence[int]) -> dict[str, Any]:
    """What a config says of its blocks when only these stay."""
    kinds = getattr(config, "layer_types", None)
    count: dict[str, Any] = {"num_hidden_layers": len(stay)}
    return count | ({"layer_types": [kinds[number] for number in stay]} if kinds else {})
