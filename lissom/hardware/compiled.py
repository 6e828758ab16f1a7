"""The kernels for GPUs, compiled for one that need not be there: what its assembler says of them before anything runs.

Triton brings the assembler along, and the program that reads what this has made. Registers and shared memory bound how
many programs a multiprocessor runs at once; what is spilled goes through memory at every turn. No time is known so.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOPPER, AMPERE = 90, 80  # capabilities, as the assembler writes them
ROUND = ("o", "inputs", "group", "groups", "wide", "entries")  # of these shapes all are multiples of 16
UNITS = ("wgmma", "mma.sync")  # the units for products, as they are called
KINDS = {
    "int4 g128": {"BITS": 4, "KIND": 0, "ZEROS": False},
    "int4 g128, zeros": {"BITS": 4, "KIND": 0, "ZEROS": True},
    "int3 g128": {"BITS": 3, "KIND": 0, "ZEROS": False},
    "int8": {"BITS": 8, "KIND": 0, "ZEROS": False},
    "16 entries": {"BITS": 4, "KIND": 1, "ZEROS": False},
    "float8": {"BITS": 8, "KIND": 2, "ZEROS": False},
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


def compiled(capability: int, *, rows: int = 16, every: bool = True) -> Iterator[Compiled]:
    """Each kernel in each form for GPUs of a capability, for some rows; all that is tried there, or the first alone."""
    from lissom.formats.gpu import coded, whole
    from lissom.formats.gpu.launch import tunings

    tried = tunings() if every else tunings()[:1]
    types = {"x": "*bf16", "y": "*bf16", "words": "*i32", "zeros": "*i32", "scale": "*fp16", "book": "*fp32"}
    more = {"q": "*i8", "a": "*fp32"}
    for tuning in tried:
        sizes = {"BLOCK_K": 128, "BLOCK_M": rows, "PARTS": 1, **tuning.kwargs}
        for form, kind in KINDS.items():
            meta = {**kind, "SCALED": True, "WHOLE": 32 % kind["BITS"] == 0, **sizes}
            yield told(form, coded.multiply, types, meta, tuning, capability)
        for form, bits, zeros in (("int8", 8, False), ("int4 g128, zeros", 4, True)):
            meta = {"BITS": bits, "ZEROS": zeros, "WHOLE": True, **sizes}
            yield told(f"{form}, inputs int8", whole.multiply_whole, types | more, meta, tuning, capability)
        if capability >= 89:
            yield small_floats(sizes, tuning, capability)


def small_floats(sizes: Mapping[str, Any], tuning: Any, capability: int) -> Compiled:
    """That of small floats on both sides."""
    from lissom.formats.gpu import narrow

    types = {"q": "*fp8e4nv", "codes": "*fp8e4nv", "a": "*fp32", "scale": "*fp16", "y": "*bf16"}
    return told("float8, inputs too", narrow.multiply_narrow, types, sizes, tuning, capability)


def told(
    form: str, kernel: Any, types: Mapping[str, str], meta: Mapping[str, Any], tuning: Any, capability: int
) -> Compiled:
    """One kernel, compiled; `types` are those of what is no size, `meta` what it is compiled for."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = kernel.fn
    names = function.arg_names
    signature = {name: "constexpr" if name in meta else types.get(name, "i32") for name in names}
    even = [place for place, name in enumerate(names) if name in ROUND or signature[name].startswith("*")]
    attrs = {(place,): [["tt.divisibility", 16]] for place in even}
    source = ASTSource(fn=function, signature=signature, constexprs=dict(meta), attrs=attrs)
    options = {"num_warps": tuning.num_warps, "num_stages": tuning.num_stages}
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

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", printed)}
