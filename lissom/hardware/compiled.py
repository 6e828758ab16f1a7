"""The kernels for GPUs, compiled for one that need not be there: what its assembler says of them before anything runs.

Triton brings the assembler along, and the program that reads what this has made. Registers and shared memory bound how
many programs a multiprocessor runs at once; what is spilled goes through memory at every turn. No time is known so.
"""

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AMPERE, ADA, HOPPER = 80, 89, 90  # capabilities, as the assembler writes them
ROUND = ("o", "inputs", "group", "groups", "wide", "entries")  # of these shapes all are multiples of 16
UNITS = ("wgmma", "mma.sync")  # the units for products, as they are called
CODES = {"words": "*i32", "zeros": "*i32", "scale": "*fp16", "book": "*fp32", "y": "*bf16"}
TYPES = {  # of what a kernel is given, where it is no size
    "coded": {**CODES, "x": "*bf16"},
    "whole": {**CODES, "q": "*i8", "a": "*fp32"},
    "narrow": {"q": "*fp8e4nv", "codes": "*fp8e4nv", "a": "*fp32", "scale": "*fp16", "y": "*bf16"},
}


def read(bits: int, kind: int, zeros: bool = False) -> tuple[str, dict[str, Any]]:
    """Codes that are decoded as they are read (formats/gpu/coded.py), and what that is compiled for."""
    meta = {"BITS": bits, "KIND": kind, "ZEROS": zeros, "SCALED": True, "WHOLE": 32 % bits == 0}
    return "coded", meta


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "int4": read(4, 0),
    "int4, zeros": read(4, 0, zeros=True),
    "int3": read(3, 0),
    "int8": read(8, 0),
    "16 entries": read(4, 1),
    "float8": read(8, 2),
    "int8, inputs int8": ("whole", {"BITS": 8, "ZEROS": False, "WHOLE": True}),
    "int4, zeros, inputs int8": ("whole", {"BITS": 4, "ZEROS": True, "WHOLE": True}),
    "float8, inputs too": ("narrow", {}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What the assembler says of a kernel in a form: of one thread, and of one program; `units` multiply in it."""

    kernel: str
    form: str
    outputs: int
    rows: int
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    units: str


def compiled(
    capability: int, *, forms: Collection[str] = FORMS, rows: int = 16, every: bool = True
) -> Iterator[Compiled]:
    """Each kernel in each form for GPUs of a capability, for some rows; all that is tried there, or the first alone."""
    from lissom.formats.gpu import coded, narrow, whole
    from lissom.formats.gpu.launch import tunings

    kernels = {"coded": coded.multiply, "whole": whole.multiply_whole, "narrow": narrow.multiply_narrow}
    for tuning in tunings() if every else tunings()[:1]:
        sizes = {"BLOCK_K": 128, "BLOCK_M": rows, "PARTS": 1, **tuning.kwargs}
        for form in forms:
            kernel, meta = FORMS[form]
            if kernel != "narrow" or capability >= ADA:
                yield told(form, kernels[kernel], TYPES[kernel], {**meta, **sizes}, tuning, capability)


def told(
    form: str, kernel: Any, types: Mapping[str, str], meta: Mapping[str, Any], tuning: Any, capability: int
) -> Compiled:
    """One kernel, compiled; `meta` is what it is compiled for."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lissom.formats.gpu.launch import FUSED

    function = kernel.fn
    names = function.arg_names
    signature = {name: "constexpr" if name in meta else types.get(name, "i32") for name in names}
    even = [place for place, name in enumerate(names) if name in ROUND or signature[name].startswith("*")]
    attrs = {(place,): [["tt.divisibility", 16]] for place in even}
    source = ASTSource(fn=function, signature=signature, constexprs=dict(meta), attrs=attrs)
    options = {"num_warps": tuning.num_warps, "num_stages": tuning.num_stages, **FUSED}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    used = resources(made.asm["cubin"])
    return Compiled(
        kernel=function.__name__,
        form=form,
        outputs=meta["BLOCK_N"],
        rows=meta["BLOCK_M"],
        warps=tuning.num_warps,
        registers=used["REG"],
        spilled_bytes=used["STACK"] + used["LOCAL"],
        shared_bytes=made.metadata.shared,
        units=next((unit for unit in UNITS if unit in made.asm["ptx"]), "none"),
    )


def resources(cubin: bytes) -> dict[str, int]:
    """What the kernel of a cubin takes, by the names that NVIDIA's tool has for it."""
    import triton

    tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", printed)}
