"""Running compressed weights fast: `lower` swaps layers for ones whose kernel reads the compressed form."""

from collections.abc import Callable

from torch import nn

from lissom.engine.kernels.int4 import int4_layer
from lissom.engine.kernels.int8 import int8_layer
from lissom.engine.kernels.sum import sum_layer
from lissom.engine.kernels.turned import turned_layer
from lissom.formats import CompressedLinear, Frozen
from lissom.models.families import put

KERNELS: tuple[Callable[[CompressedLinear], nn.Module | None], ...] = (int8_layer, int4_layer)


def lower(model: nn.Module) -> nn.Module:
    """Swap, in place, each frozen compressed linear layer for the first kernel that fits it.

    A layer that none fits stays as it is and decodes its weight at every call.
    """
    lowered: dict[nn.Module, nn.Module] = {}  # a layer in several places is lowered once
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if isinstance(layer, CompressedLinear) and isinstance(layer.matrix, Frozen) and name:
            if layer not in lowered:
                lowered[layer] = fitting(layer) or sum_layer(layer, fitting) or turned_layer(layer, fitting) or layer
            put(model, name, lowered[layer])
    return model


def fitting(layer: CompressedLinear) -> nn.Module | None:
    """The layer on the first kernel that takes its weight, or None."""
    return next((made for kernel in KERNELS if (made := kernel(layer)) is not None), None)
