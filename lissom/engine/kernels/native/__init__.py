"""The kernels in C: built with the package, chosen when they are first asked for by what the processor can do.

Without a compiler at installation there are none. Nothing here needs PyTorch; what tensors are given to is in calls.py.
"""

import ctypes
import os
from ctypes import c_float, c_int
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

from lissom.engine.kernels.native.structs import POINTER, SIZE, CAttention, CLayout, CPanels

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
    "lissom_recur": [BYTES, BYTES, c_int, c_int, POINTER, POINTER, POINTER, POINTER, SIZE, SIZE, c_int, c_int],
    "lissom_rows": [BYTES, BYTES, POINTER, SIZE, POINTER],
    "lissom_share": [POINTER],
    "lissom_likely": [POINTER, SIZE, SIZE, c_float, c_float, POINTER, c_int],
    "lissom_step": [POINTER, SIZE, POINTER, c_int, c_int, c_int],
}


def built() -> str | None:
    """The file of the library, or None where none was built."""
    usual = [Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES]
    return os.environ.get(INSTEAD) or next((str(path) for path in usual if path.exists()), None)


@cache
def library() -> ctypes.CDLL | None:
    """The library, or None where none was built; where PyTorch is used, it is imported before."""
    found = built()
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


def page_bytes(attention: CAttention) -> int:
    """Bytes of one page of keys and values."""
    opened = library()
    assert opened is not None
    return int(opened.lissom_page_bytes(ctypes.addressof(attention)))
