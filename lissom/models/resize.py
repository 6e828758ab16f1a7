"""Layers of torch.nn whose tensors have become smaller, and the attributes that say how large they are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lissom.formats import Weight
from lissom.models.families import Family

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def replace_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put other values, perhaps of another shape, in place of parameters and buffers, under every name they have."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, held in (*module._parameters.items(), *module._buffers.items()):
            if held is not None:
                holders.setdefault(id(held), []).append((module, key))
    for name, values in tensors.items():
        path, _, own = name.rpartition(".")
        owner = model.get_submodule(path)
        before: Tensor = getattr(owner, own)
        values = values.to(before.dtype).contiguous()
        made = nn.Parameter(values, before.requires_grad) if isinstance(before, nn.Parameter) else values
        for module, key in holders[id(before)]:
            setattr(module, key, made)
            fit(module)


def fit(layer: nn.Module) -> None:
    """Let a layer's attributes say what shape its weight has."""
    weight = layer._parameters.get("weight")
    if weight is None:
        return
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, CONVOLUTIONS):
        groups = weight.shape[0] * layer.groups // layer.out_channels if layer.groups > 1 else 1
        layer.out_channels, layer.in_channels, layer.groups = weight.shape[0], weight.shape[1] * groups, groups
    elif isinstance(layer, _BatchNorm):
        layer.num_features = weight.shape[0]
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = weight.shape
    elif "hidden_dim" in vars(layer):  # what chooses among experts
        layer.hidden_dim = weight.shape[1]  # type: ignore[assignment]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = weight.shape[0]


def resize(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make room for tensors that are smaller than the model's own: it then has theirs, of no meaning yet.

    `shapes` may give a layer's weight as a matrix, of o outputs and i inputs. Tensors that are larger, or have another
    rank, are left as they are.
    """
    state = model.state_dict(keep_vars=True)
    smaller = {
        name: torch.empty(shape, device=state[name].device)
        for name, shape in ((n, shaped(state[n].shape, s)) for n, s in shapes.items() if n in state)
        if shape != state[name].shape and fits(shape, state[name].shape)
    }
    replace_tensors(model, smaller)


def shaped(own: torch.Size, wanted: tuple[int, ...]) -> torch.Size:
    """The shape of a convolution's weight that is wanted as a matrix."""
    if len(own) > 2 and len(wanted) == 2 and wanted[1] % math.prod(own[2:]) == 0:
        return torch.Size((wanted[0], wanted[1] // math.prod(own[2:]), *own[2:]))
    return torch.Size(wanted)


def fits(shape: torch.Size, own: torch.Size) -> bool:
    """Whether every dim is at most the model's own."""
    return len(shape) == len(own) and all(a <= b for a, b in zip(shape, own, strict=True))


def matrix_shapes(weights: Mapping[str, Weight]) -> dict[str, tuple[int, ...]]:
    """The shapes of layers' weights, by the names of their tensors."""
    return {f"{layer}.weight": weight.shape for layer, weight in weights.items()}


def uniform(config: Any, family: Family, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What a language model's config has to say of sizes that are not what they were, but the same in every block."""

    def sizes(part: str, dim: int) -> set[int]:
        ends = f".{part}.weight"
        return {s[dim] for name, s in shapes.items() if name.startswith(f"{family.blocks}.") and name.endswith(ends)}

    queries, neurons = sizes(family.mixes, 1), sizes(family.sums, 1)
    keys = {size for name in family.heads[1:2] for size in sizes(name, 0)}  # of heads made by one layer none can go
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {
        "num_attention_heads": {size // head for size in queries},
        "num_key_value_heads": {size // head for size in keys},
        "intermediate_size": neurons,
    }
    told = {name: next(iter(same)) for name, same in found.items() if len(same) == 1}
    changed = {name: size for name, size in told.items() if size != getattr(config, name)}
    return changed | ({"head_dim": head} if changed.keys() & {"num_attention_heads"} else {})
