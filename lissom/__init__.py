"""lissom: a trained PyTorch model, as small and fast as its quality budget allows, proven and served."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lissom.errors import ArtifactError, DataError, LissomError, ModelError, RecipeError
from lissom.types import Budget, Recipe, Step

if TYPE_CHECKING:
    from lissom.artifact import compress_checkpoint, load, save
    from lissom.compress import compress_model, quantize_model
    from lissom.estimate import Certificate, Certifier, Estimate, certify
    from lissom.evaluate import compare
    from lissom.plan import Plan, plan_devices
    from lissom.recover.folder import recover_folder
    from lissom.recover.model import recover_model
    from lissom.recover.training import Training
    from lissom.search import Result, allocate_sparsity, optimize, recut

__all__ = [
    "ArtifactError",
    "Budget",
    "Certificate",
    "Certifier",
    "DataError",
    "Estimate",
    "LissomError",
    "ModelError",
    "Plan",
    "Recipe",
    "RecipeError",
    "Result",
    "Step",
    "Training",
    "allocate_sparsity",
    "certify",
    "compare",
    "compress_checkpoint",
    "compress_model",
    "load",
    "optimize",
    "plan_devices",
    "quantize_model",
    "recover_folder",
    "recover_model",
    "recut",
    "save",
]

HOMES = {  # imported when first asked for: torch takes seconds, and `lissom --help` needs none of it
    "lissom.artifact": ("compress_checkpoint", "load", "save"),
    "lissom.compress": ("compress_model", "quantize_model"),
    "lissom.estimate": ("Certificate", "Certifier", "Estimate", "certify"),
    "lissom.evaluate": ("compare",),
    "lissom.plan": ("Plan", "plan_devices"),
    "lissom.recover.folder": ("recover_folder",),
    "lissom.recover.model": ("recover_model",),
    "lissom.recover.training": ("Training",),
    "lissom.search": ("Result", "allocate_sparsity", "optimize", "recut"),
}


def __getattr__(name: str) -> Any:
    home = next((home for home, names in HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
