"""Running compressed weights fast: `lower` swaps layers for ones whose kernel reads the compressed form."""

from torch import nn

from lissom.engine.kernels.conv import conv_layer
from lissom.engine.kernels.fold import fold_norms
from lissom.engine.kernels.panels import panel_layer
from lissom.engine.kernels.signs import signs_layer
from lissom.engine.kernels.sum import sum_layer
from lissom.engine.kernels.turned import turned_layer
from lissom.formats import CompressedConv, CompressedLayer, CompressedLinear, Frozen
from lissom.models.families import put


def lower(model: nn.Module) -> nn.Module:
    """Swap, in place, each frozen compressed linear or convolution layer for the first kernel that fits it.

    A layer that none fits stays as it is and decodes its weight at every call. Batch norms behind convolutions that
    were swapped are folded into them.
    """
    lowered: dict[nn.Module, nn.Module] = {}  # a layer in several places is lowered once
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if isinstance(layer, CompressedLayer) and isinstance(layer.matrix, Frozen) and name:
            if layer not in lowered:
                lowered[layer] = fitting(layer) or layer
            put(model, name, lowered[layer])
    return fold_norms(model)


def fitting(layer: CompressedLayer) -> nn.Module | None:
    """The layer on the kernel that takes its weight, or None."""
    if isinstance(layer, CompressedConv):
        return conv_layer(layer)
    if not isinstance(layer, CompressedLinear):
        return None
    whole = panel_layer(layer) or signs_layer(layer)
    return whole or sum_layer(layer, panel_layer) or turned_layer(layer, panel_layer)
