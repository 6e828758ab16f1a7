"""Collecting statistics of the inputs of layers while a model runs.

Layers that are given the very same tensor one after the other (queries, keys and values; gate and up) share one
statistic: it is computed once and kept once.

Shapes: n rows, i inputs of a layer's matrix.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lissom.errors import DataError
from lissom.formats import CompressedConv, CompressedEmbedding
from lissom.statistics import Fisher, Gram, Guided, Moments, Statistic, finite

Collected = dict[type[Statistic], Statistic]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, CompressedConv)


@contextmanager
def observe(
    layers: Mapping[str, nn.Module],
    needs: Mapping[str, set[type[Statistic]]],
    weights: Mapping[str, Float[Tensor, " n"]] | None = None,
) -> Iterator[dict[str, Collected]]:
    """Within the block, every call of a layer adds to its statistics of the kinds in `needs`.

    `weights` says of layers with guided Grams how much each row counts, in the order in which they come.

    Raises:
        DataError: when the block ends, if what a layer was given was not finite; the first such layer is named.
    """
    collected: dict[str, Collected] = {}
    ahead = dict(weights or {})
    last: list[tuple[Tensor, str, Any]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0]
            view = (needs[name], geometry(layer), version(x), name if Guided in needs[name] else None)
            leader = last[0][1] if last and last[0][0] is x and last[0][2] == view else name
            if name not in collected:
                collected[name] = collected[leader] if leader != name else zeros(layer, x, needs[name])
            if collected[name] is not collected.get(leader) or leader == name:
                take_in(collected[name], rows(layer, x), ahead, name)
            last[:] = [(x, leader, view)]

        return see

    watched = {name: layer for name, layer in layers.items() if needs.get(name) and not looks_up(layer)}
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in watched.items()]
    try:
        yield collected
    finally:
        last.clear()
        for handle in handles:
            handle.remove()
    for name, own in collected.items():
        check_flow(name, "is given", *(one.power for one in own.values() if isinstance(one, Moments | Gram)))


def check_flow(name: str, what: str, *numbers: Tensor) -> None:
    """See that what a part of a model is given, or makes, is finite.

    Raises:
        DataError: it is not.
    """
    if not all(finite(found) for found in numbers):
        raise DataError(
            f"data: what {name} {what} is not finite when the model runs on it; leave out the examples that are unlike "
            "those it was trained on, or give a model that is sound"
        )


def take_in(own: Collected, x: Float[Tensor, "n i"], ahead: dict[str, Tensor], name: str) -> None:
    """Add rows to statistics; of the weights that lie ahead for a layer these rows use up the first."""
    weights = None
    if name in ahead:
        weights, ahead[name] = ahead[name][: len(x)], ahead[name][len(x) :]
    for statistic in own.values():
        if isinstance(statistic, Guided):
            statistic.see(x, weights)
        else:
            statistic.see(x)


def zeros(layer: nn.Module, x: Tensor, kinds: set[type[Statistic]]) -> Collected:
    """Statistics of no data yet, wide enough for the layer."""
    inputs = rows(layer, x[:1]).shape[1]
    seen = kinds - {Fisher}  # which is heard on the way back
    return {kind: kind.zero(inputs, x.device) for kind in sorted(seen, key=lambda kind: kind.__name__)}


def looks_up(layer: nn.Module) -> bool:
    """Whether the layer's input is an index, of which there is nothing to remember."""
    return isinstance(layer, nn.Embedding | CompressedEmbedding)


def version(x: Tensor) -> int:
    """Another number once the tensor was changed in place; inference tensors do not count their changes."""
    return 0 if x.is_inference() else x._version


def geometry(layer: Any) -> tuple[Any, ...]:
    """Equal for layers that make the same rows of the same tensor."""
    if not isinstance(layer, CONVOLUTIONS):
        return ()
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode


@torch.no_grad()
def rows(layer: nn.Module, x: Tensor) -> Float[Tensor, "n i"]:
    """The layer's input as rows that its matrix multiplies; for a convolution, the patches under the kernel."""
    x = x.detach()  # of a pass whose gradients are wanted too, statistics want none
    return patches(layer, x) if isinstance(layer, CONVOLUTIONS) else x.reshape(-1, x.shape[-1])


def patches(layer: Any, x: Tensor) -> Float[Tensor, "n i"]:
    """Every patch that a convolution sees, of every group of its channels."""
    spatial = len(layer.kernel_size)
    x = x if x.dim() == spatial + 2 else x.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, list(padding(layer)), mode=mode).unflatten(1, (layer.groups, -1))
    for d, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(3 + d, dilation * (size - 1) + 1, stride)[..., ::dilation]
    batch, groups, _, *places = x.shape[: 3 + spatial]
    order = (0, 1, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
    return x.permute(order).reshape(batch * groups * torch.Size(places).numel(), -1)


def padding(layer: Any) -> list[int]:
    """The padding as torch.nn.functional.pad wants it: last dim first, before and after."""
    if layer.padding == "valid":
        return [0] * 2 * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return [side for side in reversed(layer.padding) for _ in range(2)]
