"""The kernels in C, called with tensors."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from lissom.engine.kernels.native import KERNELS, Given, library
from lissom.engine.kernels.native.structs import CDense, CLayout
from lissom.errors import LissomError

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}  # as step.h counts them


def panel_rows(layer: Given, index: Tensor, width: int) -> Tensor:
    """Some rows of panels, decoded: (n, width)."""
    opened = library()
    assert opened is not None
    made = torch.empty(len(index), width)
    which = index.to(torch.long).contiguous()
    opened.lissom_rows(*layer, which.data_ptr(), len(index), made.data_ptr())
    return made


def dense(layer: CDense, rows: Tensor, kernel: str) -> Tensor:
    """Rows (n, inputs) of the type that the matrix reads, contiguous, times it, dense or masked: (n, outputs)."""
    opened = library()
    assert opened is not None
    y = torch.empty(rows.shape[0], layer.outputs)
    number, threads = KERNELS.index(kernel), torch.get_num_threads()
    if len(rows):
        opened.lissom_dense(ctypes.addressof(layer), rows.data_ptr(), y.data_ptr(), len(rows), number, threads)
    return y


def read_as(weights: torch.dtype, inputs: torch.dtype) -> torch.dtype:
    """The type in which a dense or masked matrix reads inputs: float32, or bfloat16 where both are of that."""
    return torch.bfloat16 if weights == inputs == torch.bfloat16 else torch.float32


def pack(words: Tensor, bits: int, layout: tuple[int, ...], to_bits: int, panels: Tensor) -> None:
    """Rows of a plane's words (o, w), of codes of so many bits, into panels of codes of `to_bits`.

    Raises:
        LissomError: there is too little memory for it.
    """
    opened = library()
    assert opened is not None
    rows = words.contiguous()
    given = (rows.data_ptr(), rows.shape[0], rows.shape[1] * rows.itemsize, bits)
    layout_of = CLayout(*layout)
    if opened.lissom_pack(*given, ctypes.addressof(layout_of), to_bits, panels.data_ptr(), torch.get_num_threads()):
        raise LissomError(f"kernels: no memory for panels of {rows.shape[0]} outputs")


def linear(layer: Given, rows: Tensor, outputs: int, kernel: str) -> Tensor:
    """Rows (n, inputs) of float32, contiguous, times panels: (n, outputs), by torch's number of threads.

    Raises:
        LissomError: there is too little memory for it.
    """
    opened = library()
    assert opened is not None
    n = rows.shape[0]
    y = torch.empty(n, outputs)
    if n and opened.lissom_linear(
        *layer, rows.data_ptr(), y.data_ptr(), n, KERNELS.index(kernel), torch.get_num_threads()
    ):
        raise LissomError(f"kernels: no memory for {n} rows of {rows.shape[1]} inputs; use smaller batches")
    return y


def recur(layer: Given, kind: int, backward: bool, gates: Tensor, kept: Sequence[Tensor], kernel: str) -> Tensor:
    """What a recurrent layer says of each step (t, b, s), from gates (t, b, g) and from what was said before the first.

    All is float32 and contiguous. Of an LSTM `kept` has the cell too, which is changed.

    Raises:
        LissomError: there is too little memory for it.
    """
    opened = library()
    assert opened is not None
    steps, batch, _ = gates.shape
    said = torch.empty(steps, batch, kept[0].shape[1])
    places = (gates.data_ptr(), said.data_ptr(), kept[0].data_ptr(), kept[-1].data_ptr())
    counts = (steps, batch, KERNELS.index(kernel), torch.get_num_threads())
    if said.numel() and opened.lissom_recur(*layer, kind, backward, *places, *counts):
        raise LissomError(f"kernels: no memory for {batch} sequences; use smaller batches")
    return said


def conv(layer: Given, geometry: bytes, runs: Tensor, x: Tensor, images: int, y: Tensor, kernel: str) -> None:
    """Images of float32 into y, both contiguous or both with their channels last, as `geometry`, a CConv, says.

    Raises:
        LissomError: there is too little memory for it.
    """
    opened = library()
    assert opened is not None
    if y.numel() and opened.lissom_conv(
        layer.panels,
        geometry,
        runs.data_ptr(),
        x.data_ptr(),
        y.data_ptr(),
        images,
        KERNELS.index(kernel),
        torch.get_num_threads(),
    ):
        raise LissomError(f"kernels: no memory for {images} images; use smaller batches")
