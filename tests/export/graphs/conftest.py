"""Weights in every format, and a module that has a layer in each of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

INPUTS, OUTPUTS = 96, 20


def rtn(matrix: Tensor, **knobs: Any) -> Any:
    from lissom.formats import Dense
    from lissom.statistics import Moments
    from lissom.techniques.quantize.rtn import rtn as quantize

    return quantize(Dense(values=matrix), Moments.blank(matrix.shape[1], matrix.device), **knobs)


def pruned(matrix: Tensor, **knobs: Any) -> Any:
    from lissom.formats import Masked
    from lissom.statistics import Moments
    from lissom.techniques.quantize.rtn import rtn as quantize

    masked = Masked.of(matrix.half(), matrix.abs() > matrix.abs().median())
    return quantize(masked, Moments.blank(matrix.shape[1], matrix.device), **knobs) if knobs else masked


def levels(matrix: Tensor, kind: str) -> Any:
    from lissom.formats import Binary, Ternary, Xnor

    scale = matrix.abs().mean(1, keepdim=True)
    if kind == "ternary":
        return Ternary.of((matrix / scale).round().clamp(-1, 1).add(1).to(torch.uint8), scale)
    binary = Binary.of(matrix > 0, scale)
    return Xnor(binary=binary) if kind == "xnor" else binary


def palette(matrix: Tensor, width: int = 1, scaled: bool = False, kept: bool = False) -> Any:
    from lissom.formats import Palette

    (o, i), drawn = matrix.shape, torch.Generator().manual_seed(1)
    indices = torch.randint(0, 16, (o, i // width), generator=drawn).to(torch.uint8)
    return Palette.of(
        indices,
        torch.randn(-(-o // 3), 16 * width, generator=drawn),
        3,
        matrix > 0 if kept else None,
        width=width,
        scale=torch.rand(o, 2, generator=drawn) + 0.5 if scaled else None,
    )


def dynamic(matrix: Tensor, inputs: int, **knobs: Any) -> Any:
    from lissom.formats import Dynamic

    return Dynamic(affine=rtn(matrix, **knobs), inputs=inputs)


def low(matrix: Tensor) -> Any:
    from lissom.formats import LowRank

    return LowRank.of(matrix[:, :5].clone(), matrix[:5].clone())


def corrected(matrix: Tensor) -> Any:
    from lissom.formats import Sum

    return Sum(base=rtn(matrix, bits=4, group=32), correction=low(matrix))


def turned(matrix: Tensor) -> Any:
    from lissom.formats import Turned

    return Turned(base=rtn(matrix, bits=4), size=32)


def dense(matrix: Tensor, dtype: torch.dtype) -> Any:
    from lissom.formats import Dense

    return Dense(values=matrix.to(dtype))


FORMATS: dict[str, Callable[[Tensor], Any]] = {
    "int8": partial(rtn, bits=8),
    "int8_zero": partial(rtn, bits=8, symmetric=False, group=32),
    "int4": partial(rtn, bits=4),
    "int4_zero": partial(rtn, bits=4, symmetric=False),
    "int4_16": partial(rtn, bits=4, group=16),
    "int4_32_zero": partial(rtn, bits=4, group=32, symmetric=False),
    "int4_48": partial(rtn, bits=4, group=48),
    "int4_6": partial(rtn, bits=4, group=6),
    "int4_6_zero": partial(rtn, bits=4, group=6, symmetric=False),
    "int8_6_zero": partial(rtn, bits=8, group=6, symmetric=False),
    "int3": partial(rtn, bits=3, group=16),
    "int2_zero": partial(rtn, bits=2, group=16, symmetric=False),
    "ternary": partial(levels, kind="ternary"),
    "binary": partial(levels, kind="binary"),
    "palette": palette,
    "palette_wide": partial(palette, width=2, scaled=True),
    "palette_kept": partial(palette, kept=True),
    "pruned": pruned,
    "pruned_int4_zero": partial(pruned, bits=4, group=16, symmetric=False),
    "low": low,
    "corrected": corrected,
    "turned": turned,
    "half_": partial(dense, dtype=torch.float16),
    "brain_": partial(dense, dtype=torch.bfloat16),
}
ACTING: dict[str, Callable[[Tensor], Any]] = {
    "dynamic4": partial(dynamic, inputs=4, bits=4, group=16),
    "xnor": partial(levels, kind="xnor"),
}
KINDS: dict[str, type[nn.Module]] = {"linear": nn.Linear, "conv": nn.Conv2d, "embedding": nn.Embedding}


class Many(nn.Module):
    """Layers of one kind that are given the same."""

    def __init__(self, kind: str, names: list[str]) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"linear": (INPUTS, OUTPUTS), "embedding": (OUTPUTS, INPUTS)}
        sizes["conv"] = (INPUTS // 6, OUTPUTS, (2, 3))
        self.kinds = nn.ModuleDict({name: KINDS[kind](*sizes[kind]) for name in names})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: layer(x) for name, layer in self.kinds.items()}


def given(kind: str) -> Tensor:
    if kind == "embedding":
        return torch.randint(0, OUTPUTS, (3, 5))
    return torch.randn(3, INPUTS) if kind == "linear" else torch.randn(3, INPUTS // 6, 4, 5)


@pytest.fixture
def many(tmp_path: Path) -> Callable[..., tuple[Path, Tensor, dict[str, Tensor]]]:
    """A folder of such a module, each layer in the format of its name; what it is given; and what it says."""

    def made(kind: str, formats: dict[str, Callable[[Tensor], Any]]) -> tuple[Path, Tensor, dict[str, Tensor]]:
        from lissom import save
        from lissom.formats import matrix_of
        from lissom.models import compressible, replace

        model, x = Many(kind, list(formats)).eval(), given(kind)
        layers = compressible(model)
        weights = {name: formats[name.split(".")[-1]](matrix_of(layer)) for name, layer in layers.items()}
        replace(model, weights, layers, trainable=False)
        with torch.no_grad():
            return save(model, tmp_path / kind, example=x), x, model(x)

    return made


def apart(found: Any, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((torch.as_tensor(found) - wanted).abs().max() / wanted.abs().max())
