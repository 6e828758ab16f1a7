"""Which modules of a model hold a matrix that can be compressed, and putting compressed ones in their place."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lissom.errors import ModelError
from lissom.formats import CompressedLayer, Dense, Frozen, Trainable, Weight, matrix_of, share_base, wrap
from lissom.formats.linear import compressed_kind
from lissom.models.families import put
from lissom.statistics import finite


def compressible(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The layers by dotted name, in the order of the module tree: torch.nn's own, and those already compressed.

    Subclasses are left alone: their code may read the weight in ways of its own (attention's output projection does).
    Those of embeddings that do nothing but scale their rows are known. What `leave` has named is left alone too.
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
    alone = renormalized or LEFT in vars(layer)
    return weight is not None and weight.is_floating_point() and weight.numel() > 0 and not alone


LEFT = "stays_as_it_is"  # the attribute of such layers


def leave(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Let layers of a model, in place, be none that can be compressed, in copies of it too."""
    for name in names:
        setattr(model.get_submodule(name), LEFT, True)
    return model


def check_module(model: Any) -> None:
    """See that a model is one whose layers can be replaced.

    Raises:
        ModelError: it is no module, or a scripted one.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(model).__name__} is scripted, its layers are fixed; give the module that it was made of"
        )
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{model!r:.80} is no torch.nn.Module; folders of language models are for `lissom compress` and "
            "lissom.optimize, others are opened by lissom.load"
        )


def check_finite(tensors: Iterable[tuple[str, Tensor]], whose: str) -> None:
    """See that the numbers of a model are numbers, before hours of work on it; `whose` they are, an error says.

    Raises:
        ModelError: a tensor holds NaN or an infinity; it is named.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not finite(tensor):
            wrong = (~tensor.isfinite()).nonzero()
            raise ModelError(
                f"{name} of {whose} holds {len(wrong)} numbers that are not finite, the first at {wrong[0].tolist()}; "
                "copy or download it again, or give a model whose training went well"
            )


def linear(matrix: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A layer with a matrix and a bias of its own, not parts of others."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, device="meta")
    for name, held in (("weight", matrix), ("bias", bias)):
        if held is not None:
            own = held.detach().clone(memory_format=torch.contiguous_format)
            setattr(layer, name, nn.Parameter(own, held.requires_grad))
    return layer


def weight_of(layer: nn.Module) -> Weight:
    """A layer's weight in the format it has."""
    return layer.weight if isinstance(layer, CompressedLayer) else Dense(values=matrix_of(layer))


def replace(
    model: nn.Module, weights: Mapping[str, Weight], layers: Mapping[str, nn.Module], *, trainable: bool
) -> None:
    """Put compressed layers in place, under every name they have; one weight of several layers stays one module."""
    held: dict[int, Frozen | Trainable] = {}
    bases: dict[int, Trainable] = {}
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for name, weight in weights.items():
        compressed = wrap(layers[name], weight, trainable=trainable)
        compressed.matrix = held.setdefault(id(weight), compressed.matrix)
        if isinstance(compressed.matrix, Trainable):
            share_base(compressed.matrix, weight, bases)
        for same in names[layers[name]]:
            put(model, same, compressed)
