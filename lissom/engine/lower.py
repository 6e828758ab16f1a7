"""`lower` swaps layers for ones whose kernel reads the compressed form."""

from dataclasses import dataclass
from types import UnionType
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from lissom.engine.encoder import native_encoders
from lissom.engine.images import native_images
from lissom.engine.kernels.conv import conv_layer
from lissom.engine.kernels.fold import fold_norms
from lissom.engine.kernels.layer import KernelEmbedding, KernelLinear
from lissom.engine.kernels.lowrank import low_rank_layer
from lissom.engine.kernels.masked import masked_layer
from lissom.engine.kernels.panels import panel_layer
from lissom.engine.kernels.signs import signs_layer
from lissom.engine.kernels.sparse import sparse_layer
from lissom.engine.kernels.steps import lower_steps
from lissom.engine.kernels.sum import sum_layer
from lissom.engine.kernels.turned import turned_layer
from lissom.formats import CompressedConv, CompressedEmbedding, CompressedLayer, CompressedLinear, Frozen, scale_of
from lissom.models.apart import put_back
from lissom.models.families import put


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """What a model's own code may ask of a matrix that only a kernel reads."""

    dtype: torch.dtype
    device: torch.device


def lower(model: nn.Module) -> nn.Module:
    """Swap, in place, each frozen compressed linear layer, convolution and embedding for the first kernel that fits it.

    A layer that none fits stays as it is and decodes its weight at every call. An embedding and a head that share a
    matrix share it here too, batch norms behind convolutions that were swapped are folded into them, recurrent layers
    of which nothing is compressed are torch.nn's again, and the steps of others, text encoders, and convolutional
    networks of layers that were swapped run as programs.
    """
    model = put_back(model)
    lowered = WeakIdKeyDictionary()  # a layer in several places is lowered once; then its own memory is let go of
    tables = WeakIdKeyDictionary()  # by the matrix that they hold
    for name in tables_first(model):
        layer: Any = model.get_submodule(name)
        if layer not in lowered:
            own = isinstance(layer, CompressedEmbedding)
            lowered[layer] = (looking_up(layer, tables.get(layer.matrix)) if own else fitting(layer)) or layer
            if not hasattr(lowered[layer], "weight"):
                lowered[layer].weight = Matrix(dtype=layer.dtype, device=next(layer.matrix.buffers()).device)
        put(model, name, lowered[layer])
        if isinstance(lowered[layer], KernelLinear):
            tables[layer.matrix] = lowered[layer]
    return native_images(native_encoders(fold_norms(lower_steps(model))))


def placed(model: nn.Module, place: torch.device) -> nn.Module:
    """The model, where it is to run; on a GPU what it learned is in the 16 bits that it was trained in, if it was.

    What is compressed stays as it is stored, and so do the angles of positions, which have to be exact.
    """
    if place.type == "cpu":
        return model
    trained = getattr(getattr(model, "config", None), "dtype", None)
    kind = getattr(torch, trained, None) if isinstance(trained, str) else trained
    if kind in (torch.bfloat16, torch.float16):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(kind)  # before it is moved: a GPU may not hold twice as much
    return model.to(place)


def fitting(layer: CompressedLinear | CompressedConv) -> nn.Module | None:
    """The layer on the kernel that takes its weight, or None."""
    if isinstance(layer, CompressedConv):
        return conv_layer(layer)
    whole = panel_layer(layer) or masked_layer(layer) or sparse_layer(layer) or signs_layer(layer)
    return (
        whole or low_rank_layer(layer, panel_layer) or sum_layer(layer, panel_layer) or turned_layer(layer, panel_layer)
    )


def looking_up(layer: CompressedEmbedding, table: KernelLinear | None) -> KernelEmbedding | None:
    """The embedding on its matrix as a kernel reads it, which another layer may hold already, or None."""
    held = table or panel_layer(layer) or masked_layer(layer)
    return KernelEmbedding(held, scale_of(layer), layer.dtype) if held else None


def tables_first(model: nn.Module) -> list[str]:
    """The names of all that is lowered: heads that are embeddings too, embeddings, and the rest from its end.

    What is lowered lies in memory twice for a moment. These, and a head of its own, are the largest by far, and when
    they come first the file of no other has been read yet.
    """
    embeddings = frozen(model, CompressedEmbedding)
    held = {model.get_submodule(name).matrix for name in embeddings}
    rest = frozen(model, CompressedLinear | CompressedConv)[::-1]
    shared = [name for name in rest if model.get_submodule(name).matrix in held]
    return [*shared, *embeddings, *(name for name in rest if name not in shared)]


def frozen(model: nn.Module, kind: type[CompressedLayer] | UnionType) -> list[str]:
    """The names of frozen layers of a kind, every name of those that have several."""
    layers = model.named_modules(remove_duplicate=False)
    return [name for name, layer in layers if isinstance(layer, kind) and isinstance(layer.matrix, Frozen) and name]
