"""What comes in: any torch module, and Hugging Face checkpoints read tensor by tensor."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lissom.models.checkpoint import Checkpoint, is_checkpoint
    from lissom.models.families import FAMILIES, Family, family_of
    from lissom.models.layers import compressible, replace, weight_of

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Family",
    "compressible",
    "family_of",
    "is_checkpoint",
    "replace",
    "weight_of",
]

HOMES = {
    "lissom.models.checkpoint": ("Checkpoint", "is_checkpoint"),
    "lissom.models.families": ("FAMILIES", "Family", "family_of"),
    "lissom.models.layers": ("compressible", "replace", "weight_of"),
}  # imported when first asked for: a tokenizer by itself needs no PyTorch


def __getattr__(name: str) -> Any:
    home = next((home for home, names in HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
