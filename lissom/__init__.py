"""lissom: a trained PyTorch model, as small and fast as its quality budget allows, proven and served."""

from lissom.artifact import compress_checkpoint, load, save
from lissom.compress import compress_model, quantize_model
from lissom.errors import ArtifactError, DataError, LissomError, ModelError, RecipeError
from lissom.estimate import Certificate, Estimate, certify
from lissom.evaluate import compare
from lissom.search import Result, optimize
from lissom.types import Budget, Recipe, Step

__all__ = [
    "ArtifactError",
    "Budget",
    "Certificate",
    "DataError",
    "Estimate",
    "LissomError",
    "ModelError",
    "Recipe",
    "RecipeError",
    "Result",
    "Step",
    "certify",
    "compare",
    "compress_checkpoint",
    "compress_model",
    "load",
    "optimize",
    "quantize_model",
    "save",
]
