"""Convolutions on panels: the inputs that some output rows see become integers once, and patches of them are rows.

    y_o = unit_o Σ_g s_og a Σ_{j in g} q_j (c_oj - z_og) + b_o        a = max |x| / 127,  q = round(127 x / max |x|)

The maximum is over all that a block of output rows sees, or, where the format says so (`Dynamic`), over the image. With
channels innermost a patch is a few runs of neighbours, so the weight's inputs are put in that order, as far as the
groups that share a scale let them.

Shapes: n images, c channels, h high, w wide; o outputs, i inputs of a patch, r runs.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.engine.kernels.native import calls
from lissom.engine.kernels.native.structs import CConv
from lissom.engine.kernels.panels import LANES, MOST, Grid, PanelLinear, by_output, grid_of
from lissom.errors import LissomError
from lissom.formats import CompressedConv

POSITIONS = 64  # the fewest outputs of a block, where the image has so many


def conv_layer(layer: CompressedConv) -> "PanelConv | None":
    """The layer on this kernel, or None where it is no convolution of images padded with zeros, its weight is no grid
    of codes or is not on the CPU, or its groups of channels do not fill panels."""
    if layer.stands_for is not nn.Conv2d or layer.padding_mode != "zeros":
        return None
    whole_panels = layer.groups == 1 or layer.out_channels // layer.groups % LANES == 0
    on_cpu = all(part.device.type == "cpu" for part in layer.matrix.buffers())
    grid = grid_of(layer.weight) if whole_panels and on_cpu else None
    return None if grid is None else PanelConv(layer, grid)


class PanelConv(nn.Module):
    """A convolution of images; like its panels, it stays as it is when the model around it is moved or cast."""

    def __init__(self, layer: CompressedConv, grid: Grid) -> None:
        super().__init__()
        self.channels, self.groups, self.whole = layer.in_channels, layer.groups, grid.levels > 0
        self.size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.reach = [d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True)]
        self.padding = padding(layer.padding, self.reach)
        self.order = ordered(grid, math.prod(self.size))
        grid = dataclasses.replace(grid, codes=grid.indices()[:, self.order], levels=grid.levels or MOST)
        self.panels = PanelLinear(grid, layer.bias)
        self.runs = self._runs()
        self._known: tuple[torch.Size, torch.device, bool] | None = None  # of which input the plan is
        self._plan: tuple[tuple[int, ...], bytes] = (), b""

    def _runs(self) -> Int[Tensor, "r 4"]:
        """Values that lie side by side in the image and in the matrix: their row in the patch, where they begin there
        and in the row of the matrix, and how many they are."""
        taps, (_, across) = math.prod(self.size), self.size
        channel, tap = self.order // taps, self.order % taps
        row = tap // across * self.dilation[0]
        begin = tap % across * self.dilation[1] * self.channels + channel
        place = torch.arange(len(self.order))
        to = place // self.panels.group * self.panels.wide + place % self.panels.group
        marks = torch.stack([row, begin - place, to - place])  # which stay the same inside of a run
        first = torch.cat([torch.ones(1, dtype=torch.bool), (marks[:, 1:] != marks[:, :-1]).any(0)]).nonzero()[:, 0]
        count = torch.diff(first, append=torch.tensor([len(place)]))
        return torch.stack([row[first], begin[first], to[first], count], 1).int()

    def _apply(self, fn: object, recurse: bool = True) -> "PanelConv":
        return self

    def forward(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n o y x"]:
        """The convolution, by the best kernel there is.

        Raises:
            LissomError: images of another number of channels, too small ones, or such as are not on the CPU.
        """
        kernels = native.kernels()
        return self.run(x, kernels[-1]) if kernels else self.definition(x)

    def run(self, x: Float[Tensor, "*n c h w"], kernel: str) -> Float[Tensor, "*n o y x"]:
        """The convolution by one of native.kernels(); channels lie in the output as they do in the input."""
        images = x.detach().float()
        last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        if (x.shape, x.device, last) != self._known:
            self._known, self._plan = (x.shape, x.device, last), self._planned(x, last)
        shape, geometry = self._plan
        y = torch.empty(shape, memory_format=torch.channels_last if last else torch.contiguous_format)
        images = images if last else images.contiguous()
        calls.conv(self.panels.given(), geometry, self.runs, images, y.shape[:-3].numel(), y, kernel)
        return y.to(x.dtype)

    def _planned(self, x: Float[Tensor, "*n c h w"], last: bool) -> tuple[tuple[int, ...], bytes]:
        """The shape of the output for an input of this shape, and what the library must know of it."""
        high, wide = self.outputs(x)
        (top, _), (left, _), outputs = *self.padding, self.panels.shape[0]
        sizes = (*x.shape[-3:], outputs, high, wide, tuple(self.stride), (top, left), tuple(self.reach))
        more = (rows_of(wide), self.groups, len(self.runs), self.panels.levels, self.whole, last)
        return (*x.shape[:-3], outputs, high, wide), bytes(CConv(*sizes, *more))

    def outputs(self, x: Float[Tensor, "*n c h w"]) -> tuple[int, int]:
        """Height and width of what becomes of images.

        Raises:
            LissomError: they do not fit.
        """
        if x.dim() not in (3, 4) or x.shape[-3] != self.channels or x.device.type != "cpu":
            given = f"{tuple(x.shape)} on {x.device}"
            raise LissomError(f"kernels: a convolution of {self.channels} channels on the CPU was given {given}")
        sizes = tuple(x.shape[-2:])
        room = [size + sum(pad) - reach for size, pad, reach in zip(sizes, self.padding, self.reach, strict=True)]
        if min(room) < 0:
            raise LissomError(f"kernels: images of {sizes} are smaller than the patches {self.reach}")
        return room[0] // self.stride[0] + 1, room[1] // self.stride[1] + 1

    def definition(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n o y x"]:
        """What the kernels compute, in PyTorch."""
        high, wide = self.outputs(x)
        padded = F.pad(x.reshape(-1, *x.shape[-3:]).float(), (*self.padding[1], *self.padding[0]))
        rows, (down, _) = rows_of(wide), self.stride
        most = padded.abs().amax((1, 2, 3), keepdim=True) if self.whole else None
        parts = []
        for first in range(0, high, rows):
            end = (min(first + rows, high) - 1) * down + self.reach[0]
            parts.append(self._block(self.integers(padded[:, :, first * down : end], most)))
        return torch.cat(parts, 2).to(x.dtype).reshape(*x.shape[:-3], -1, high, wide)

    def _block(self, q: Float[Tensor, "n c s v"]) -> Float[Tensor, "n o y x"]:
        """Some rows of the output, of all that they see."""
        panels = self.panels
        bias = None if panels.bias is None else by_output(panels.bias)[: panels.shape[0], 0]
        return F.conv2d(q, self.kernel(), bias, self.stride, 0, self.dilation, self.groups)

    def integers(self, x: Float[Tensor, "n c s v"], most: Float[Tensor, "n 1 1 1"] | None) -> Float[Tensor, "n c s v"]:
        """a q of what a block sees, by the largest magnitude in it unless that of the image is given."""
        if most is None:
            most = x.abs().amax((1, 2, 3), keepdim=True)
        levels = self.panels.levels
        factor = torch.full_like(most, levels) / most
        q: Tensor = (x * torch.where(most > 0, factor, 0.0)).round()
        return q * (most / levels)

    def kernel(self) -> Float[Tensor, "o i y x"]:
        """The weight again."""
        made: Tensor = self.panels.matrix()[:, self.order.argsort()].unflatten(1, (-1, *self.size))
        return made


def rows_of(wide: int) -> int:
    """Output rows of a block, of so many positions each."""
    return -(-POSITIONS // wide)


def padding(given: str | tuple[int, ...], reach: list[int]) -> list[tuple[int, int]]:
    """Zeros before and after, down and across: torch.nn's argument, which may be a word."""
    if given == "same":
        return [((size - 1) // 2, size // 2) for size in reach]
    return [(0, 0), (0, 0)] if isinstance(given, str) else [(size, size) for size in given]


def ordered(grid: Grid, taps: int) -> Int[Tensor, " i"]:
    """The inputs of a patch with channels innermost, within each group of whole channels that shares a scale."""
    inputs, groups = grid.codes.shape[1], grid.scale.shape[1]
    places = torch.arange(inputs)
    fits = inputs // groups % taps == 0
    return places.unflatten(0, (groups, -1, taps)).transpose(1, 2).flatten() if fits else places
