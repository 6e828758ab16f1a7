"""The kernels in C: built with the package, chosen when they are first asked for by what the processor can do.

Without a compiler at installation there are none.
"""

import ctypes
import os
from ctypes import c_int
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lissom.engine.kernels.native.structs import POINTER, SIZE, CAttention, CDense, CLayout, CPanels
from lissom.errors import LissomError

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}  # as step.h counts them
# As native.c counts them; the last that runs is the best.
KERNELS = ("portable", "avx2", "avxvnni", "avx512", "avx512bf16")
INSTEAD = "LISSOM_NATIVE"  # the environment may name another build of the library, such as one that checks itself

BYTES = ctypes.c_char_p
ARGUMENTS = {  # of the functions of the library, as they are declared in C
    "lissom_conv": [BYTES, BYTES, POINTER, POINTER, POINTER, SIZE, c_int, c_int],
    "lissom_dense": [POINTER, POINTER, POINTER, SIZE, c_int, c_int],
    "lissom_images": [POINTER, SIZE, POINTER, SIZE, POINTER, SIZE, POINTER, POINTER, SIZE, c_int, c_int],
    "lissom_linear": [BYTES, BYTES, POINTER, POINTER, SIZE, c_int, c_int],
    "lissom_pack": [POINTER, SIZE, SIZE, c_int, POINTER, c_int, POINTER, c_int],
    "lissom_page_bytes": [POINTER],
    "lissom_rows": [BYTES, BYTES, POINTER, SIZE, POINTER],
    "lissom_share": [POINTER],
    "lissom_step": [POINTER, SIZE, POINTER, c_int, c_int, c_int],
}


@cache
def library() -> ctypes.CDLL | None:
    """The library, or None where none was built."""
    built = [Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES]
    given = os.environ.get(INSTEAD)
    found = given or next((str(path) for path in built if path.exists()), None)
    if found is None:
        return None
    opened = ctypes.CDLL(found)
    for name, arguments in ARGUMENTS.items():
        getattr(opened, name).argtypes = arguments
    opened.lissom_page_bytes.restype = SIZE
    opened.lissom_share(openmp())
    return opened


def openmp() -> int | None:
    """Where GNU's OpenMP, which PyTorch may have loaded for its own operators, begins work on several threads."""
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return None if found is None else ctypes.cast(found, ctypes.c_void_p).value


@cache
def kernels() -> tuple[str, ...]:
    """The names of those that run here, the best one last; none where there is no library."""
    opened = library()
    return () if opened is None else tuple(name for at, name in enumerate(KERNELS) if opened.lissom_runs(at) == 1)


class Given(NamedTuple):
    """A layer as the library is given it: bytes of a CPanels and a CLayout. A copy of a layer may copy them."""

    panels: bytes
    layout: bytes

    @classmethod
    def of(cls, panels: tuple[int | None, ...], layout: tuple[int, ...]) -> "Given":
        """From their fields."""
        return cls(bytes(CPanels(*panels)), bytes(CLayout(*layout)))


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


def page_bytes(attention: CAttention) -> int:
    """Bytes of one page of keys and values."""
    opened = library()
    assert opened is not None
    return int(opened.lissom_page_bytes(ctypes.addressof(attention)))


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
