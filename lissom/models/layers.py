"""Which modules of a model hold a matrix that can be compressed."""

from torch import nn

from lissom.formats import CompressedLayer
from lissom.formats.linear import compressed_kind


def compressible(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The layers by dotted name, in the order of the module tree: torch.nn's own, and those already compressed.

    Subclasses are left alone: their code may read the weight in ways of its own (attention's output projection does).
    Those of embeddings that do nothing but scale their rows are known.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, CompressedLayer) or (compressed_kind(module) and weighs(module)):
            found[f"{prefix}.{name}".strip(".") if prefix else name] = module
    return found


def weighs(layer: nn.Module) -> bool:
    """Whether the layer's matrix is its own floating-point parameter, with at least one weight, used as it stands."""
    weight = layer._parameters.get("weight")
    renormalized = getattr(layer, "max_norm", None) is not None  # such an embedding rewrites its rows as it is used
    return weight is not None and weight.is_floating_point() and weight.numel() > 0 and not renormalized
