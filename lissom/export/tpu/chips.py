"""Compiling for TPUs that are not there, by their own compiler, and what it says of memory and work.

Every tensor of a layer is shared out over the chips: a linear layer's along its outputs, or along its inputs where it
reads what another has shared out. How the rest follows from that, and where chips must tell each other something, is
found by XLA.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lissom.errors import ModelError, RecipeError, meant, reason
from lissom.export.tpu.lower import Lowered, jax_here

GIB = 2**30
AXIS = "tensor"
Shares = Mapping[str, tuple[int, ...]]  # the dims along which a tensor may be shared out, the best first, by its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A generation of chips: the bytes that one has, and how pods of them are called and laid out, by what is sold."""

    memory: int
    layouts: Mapping[int, str]


FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CORES = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4"}  # v5p is counted in cores, two to a chip
KINDS: Mapping[str, Kind] = {
    "v5e": Kind(memory=16 * GIB, layouts=FLAT),
    "v6e": Kind(memory=32 * GIB, layouts=FLAT),
    "v5p": Kind(memory=95 * GIB, layouts=CORES),
}
TOPOLOGIES = tuple(f"{kind}-{count}" for kind, own in KINDS.items() for count in own.layouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What the compiler says of one chip: bytes, and operations of a step.

    `arguments` has the weights and the inputs, by the type that XLA holds them in; `together` is the most that is there
    at a time.
    """

    topology: str
    chips: int
    compiler: str
    arguments: Mapping[str, int]
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    code_bytes: int
    flops: float
    accessed_bytes: float
    exchanges: Mapping[str, int]
    memory: int

    @property
    def together(self) -> int:
        """Bytes that a chip needs."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.code_bytes

    @property
    def fits(self) -> bool:
        """Whether a chip has so many."""
        return self.together <= self.memory


def check(topology: str) -> None:
    """See that there is such a topology.

    Raises:
        RecipeError: there is none.
    """
    if topology not in TOPOLOGIES:
        raise RecipeError(
            f"topology: {topology!r} is unknown; there are {', '.join(TOPOLOGIES)}{meant(topology, TOPOLOGIES)}"
        )


def devices_of(topology: str) -> list[Any]:
    """Descriptions of the chips.

    Raises:
        ModelError: the compiler is not installed, or does not start.
    """
    jax_here()
    from jax.experimental import topologies

    name, _, count = topology.partition("-")
    layout = KINDS[name].layouts[int(count)]
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{layout}").devices)
    except Exception as error:  # of XLA's own, which have no class in common
        raise ModelError(f"TPUs' compiler does not start ({reason(error)}); pip install 'lissom[tpu]'") from None


def compiled(low: Lowered, shares: Shares, topology: str) -> Compiled:
    """Compile a lowered module for a topology, and what the compiler says.

    Raises:
        RecipeError: there is no such topology.
        ModelError: it cannot be compiled.
    """
    check(topology)
    jax = jax_here()
    executable, chips = built(low, shares, topology)
    memory, text = executable.memory_analysis(), executable.as_text()
    cost = executable.cost_analysis() or {}
    return Compiled(
        topology=topology,
        chips=chips,
        compiler=f"libtpu under jax {jax.__version__}",
        arguments=arguments_in(text),
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=float(cost.get("flops", math.nan)),
        accessed_bytes=float(cost.get("bytes accessed", math.nan)),
        exchanges=exchanges_in(text),
        memory=KINDS[topology.partition("-")[0]].memory,
    )


def built(low: Lowered, shares: Shares, topology: str) -> tuple[Any, int]:
    """The executable, and on how many chips it runs.

    Raises:
        ModelError: it cannot be compiled.
    """
    devices = devices_of(topology)
    function, _ = shared_out(low, shares, devices)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of inputs that no output takes the place of
            return function.lower(*low.shapes()).compile(), len(devices)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"TPUs' compiler refuses it for {topology}: {reason(error)}") from None


def shared_out(low: Lowered, shares: Shares, devices: Sequence[Any]) -> tuple[Any, tuple[dict[str, Any], ...]]:
    """The function for several devices, which writes new keys and values over the old; and where what it takes lies."""
    jax = jax_here()
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(devices), (AXIS,))

    def places(given: Mapping[str, Any]) -> dict[str, Any]:
        specs = {name: spec_of(tuple(one.shape), shares.get(name, ()), len(devices)) for name, one in given.items()}
        return {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in specs.items()}

    both = places(low.tensors), places(low.inputs)
    return jax.jit(low.function, in_shardings=both, donate_argnums=1), both


def spec_of(shape: tuple[int, ...], dims: tuple[int, ...], chips: int) -> tuple[str | None, ...]:
    """How a tensor is shared out: along the first of some dims that the chips divide."""
    dim = next((dim for dim in dims if shape[dim] % chips == 0), None)
    return () if dim is None else (*(None for _ in range(dim)), AXIS)


BITS = {"pred": 8, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "bf16": 16, "f16": 16, "f32": 32}


def arguments_in(text: str) -> dict[str, int]:
    """The bytes of a program's arguments by their types, as XLA writes them, without what tiles are filled up with."""
    entry = text[text.index("\nENTRY") :]
    found = Counter[str]()
    for kind, shape in re.findall(r"= (\w+)\[([\d,]*)\]\S* parameter\(", entry):
        found[kind] += math.prod(map(int, filter(None, shape.split(",")))) * BITS.get(kind, 32) // 8
    return dict(found)


def exchanges_in(text: str) -> dict[str, int]:
    """How often chips tell each other something, by the kind of it."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return {kind: count for kind in kinds if (count := len(re.findall(rf" {kind}(?:-start)?\(", text)))}
