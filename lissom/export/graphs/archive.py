"""torch.export's archive (.pt2): any module as a program that PyTorch runs by itself, without lissom.

Weights stay as they are stored, every format of ours: what makes numbers of them is written into the program, in
PyTorch's own operators. It is computed anew whenever the program runs, unless a compiler does so before.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lissom.export.graphs.program import followed, quietly, signature_of
from lissom.export.handover import Form, Given, described
from lissom.files import replacing
from lissom.formats import Weight, affine, binary, floats, masked, narrow, palette, signs, ternary

TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")  # where a node was written


class Plainly(TorchFunctionMode):
    """Operators of ours are what they are defined to be, while a module is followed."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What an operator gives."""
        return PLAIN.get(func, func)(*args, **(kwargs or {}))


def product(dense: Callable[..., Tensor], x: Tensor, *weight: Any) -> Tensor:
    """x Wᵀ by way of the dense matrix."""
    return F.linear(x, dense(*weight).to(x.dtype))


def affine_dense(words: Tensor, *more: Any) -> Tensor:
    """That of integers; how many rows there are is a symbol where some are looked up, and then not asked for."""
    *others, rows, columns = more
    found: Tensor = affine.affine_dense._init_fn(words, *others, rows if isinstance(rows, int) else 0, columns)
    return found


def dynamic(x: Tensor, *weight: Any) -> Tensor:
    """x Wᵀ for an x that was rounded before; how finely is told last, and not needed."""
    return product(affine_dense, x, *weight[:-1])


def plain() -> dict[Any, Callable[..., Tensor]]:
    """What each operator of ours is defined to be, against which every kernel is held.

    Products of whole numbers are those of the floats that they stand for.
    """
    defined: dict[str, Any] = {
        "binary": binary.binary_dense,
        "floats": floats.floats_dense,
        "masked": masked.masked_dense,
        "palette": palette.palette_dense,
        "signs": signs.signs_dense,
        "ternary": ternary.ternary_dense,
    }
    dense: dict[str, Callable[..., Tensor]] = {name: one._init_fn for name, one in defined.items()}
    dense["affine"] = affine_dense
    ops = torch.ops.lissom
    products: dict[str, Callable[..., Tensor]] = {
        f"{name}_linear": partial(product, one) for name, one in dense.items() if name != "masked"
    }
    products |= {"dynamic_linear": dynamic, "xnor_linear": products["binary_linear"]}
    products["narrow_linear"] = narrow.narrow_linear._init_fn
    products["signs_linear"] = signs.signs_linear._init_fn
    return {getattr(ops, name): one for name, one in products.items()} | {
        getattr(ops, f"{name}_dense"): one for name, one in dense.items()
    }


PLAIN = plain()


def holds(weight: Weight, layer: nn.Module) -> Form:
    """Any weight is held."""
    return Form(name=described(weight), bits=weight.bits_per_weight)


def nearest(weight: Weight, layer: nn.Module) -> Weight:
    """None is needed."""
    return weight


def write(given: Given, taken: Mapping[str, Weight], out: Path) -> None:
    """One archive of everything.

    Raises:
        ModelError: torch.export cannot follow the module.
    """
    with quietly(), Plainly():
        program = followed(given.changed(taken), signature_of(given), given)
    program.example_inputs = None  # PyTorch would pickle it
    for node in program.graph.nodes:
        for name in TRACES:
            node.meta.pop(name, None)
    with replacing(out) as path, path.open("wb") as file:
        torch.export.save(program, file)
