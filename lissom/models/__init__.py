"""What comes in: any torch module, and Hugging Face checkpoints read tensor by tensor."""

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
