"""A module as a function of arrays that JAX can compile, its weights among the arguments.

torch.export writes down what the module computes in some two hundred operators, for each of which torchax has a
function of JAX. Integers of four bits, which PyTorch does not have, become such where arrays are made.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lissom.errors import ModelError, reason
from lissom.export.tpu.plain import NARROW

# What torchax 0.0.13 names as it is imported, and PyTorch 2.13 no longer has.
GONE = (("prod", "dim_Dimname"), ("index_copy", "dimname"))
NAMING = ((torch.utils, "rename_privateuse1_backend"), (torch, "_register_device_module"))
SETTINGS = {  # before JAX is imported: what is compiled here runs elsewhere, and nobody is told of it
    "JAX_PLATFORMS": "cpu",
    "ENABLE_RUNTIME_UPTIME_TELEMETRY": "0",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lowered:
    """`function(arrays, inputs)` gives a list of outputs; both are mappings by name.

    The parts of a list are called "name.0" and so on. `tensors` are what the arrays are made of; those of a meta device
    have shapes only.
    """

    function: Callable[[Mapping[str, Any], Mapping[str, Any]], list[Any]]
    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]

    def shapes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the function takes, without numbers."""
        jax = jax_here()
        made = (
            {name: jax.ShapeDtypeStruct(tuple(one.shape), dtype_of(name, one)) for name, one in part.items()}
            for part in (self.tensors, self.inputs)
        )
        tensors, inputs = made
        return tensors, inputs

    def arrays(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the function takes."""
        tensors, inputs = ({n: array_of(n, one) for n, one in part.items()} for part in (self.tensors, self.inputs))
        return tensors, inputs


def jax_here() -> Any:
    """JAX, on the processor.

    Raises:
        ModelError: it is not installed.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import jax
    except ImportError:
        raise ModelError("lowering for TPUs needs jax, libtpu and torchax; pip install 'lissom[tpu]'") from None
    return jax


def operators() -> Mapping[Any, Any]:
    """Functions of JAX by PyTorch's operators, torchax's and ours; PyTorch is left as it was.

    Raises:
        ModelError: it is not installed.
    """
    jax_here()
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        with as_it_expects():
            from torchax.ops import jaten, ops_registry  # noqa: F401 (the first fills the second)
    except ImportError:
        raise ModelError("lowering for TPUs needs jax, libtpu and torchax; pip install 'lissom[tpu]'") from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    theirs = ops_registry.all_aten_ops.items()
    pure = {target: one.func for target, one in theirs if one.is_jax_function and not one.needs_env}
    return pure | own_operators()


@contextmanager
def as_it_expects() -> Iterator[None]:
    """While torchax is imported, names that PyTorch has no longer stand for nothing.

    Nor may it name a device of its own, which then were the accelerator that everybody is given who asks for one.
    """
    packets = [(getattr(torch.ops.aten, operator), name) for operator, name in GONE]
    missing = [(packet, name) for packet, name in packets if name not in packet.overloads()]
    kept = [(owner, name, getattr(owner, name)) for owner, name in NAMING]
    for owner, name in [*missing, *NAMING]:
        setattr(owner, name, lambda *given: None)
    try:
        yield
    finally:
        for packet, name in missing:
            delattr(packet, name)
        for owner, name, own in kept:
            setattr(owner, name, own)


def dtype_of(name: str, tensor: Tensor) -> Any:
    """The type that JAX gives a tensor; integers of four bits are known by their name."""
    jnp = jax_here().numpy
    if name.endswith(NARROW):
        return jnp.dtype(jnp.int4)
    own = {torch.int64: "int32", torch.float64: "float32"}  # JAX has no more unless it is told to
    return jnp.dtype(own.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")))


def array_of(name: str, tensor: Tensor) -> Any:
    """A tensor as JAX has it."""
    jnp = jax_here().numpy
    wide = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
    return jnp.asarray(wide.cpu().numpy()).astype(dtype_of(name, tensor))


def own_operators() -> dict[Any, Any]:
    """Functions of ours: what torchax has not, and what it would take apart so that heads cannot be shared out."""
    aten = torch.ops.aten
    return {
        aten._int_mm.default: whole_product,
        aten.matmul.default: jax_here().numpy.matmul,
        aten.scaled_dot_product_attention.default: attention,
    }


def whole_product(x: Any, y: Any) -> Any:
    """x y of integers, summed in 32 bits."""
    jax = jax_here()
    int8, int32 = jax.numpy.int8, jax.numpy.int32
    return jax.lax.dot(x.astype(int8), y.astype(int8), preferred_element_type=int32)


def attention(
    q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """PyTorch's attention, as it computes it when nothing is learned; a token that sees none becomes 0."""
    jnp = jax_here().numpy
    if enable_gqa:
        k, v = (jnp.repeat(part, q.shape[-3] // part.shape[-3], -3) for part in (k, v))
    scores = jnp.einsum("...td,...sd->...ts", q, k, preferred_element_type=jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    mask = jnp.tril(jnp.ones(scores.shape[-2:], bool)) if causal else mask
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == bool else scores + mask
    highest = jnp.maximum(scores.max(-1, keepdims=True), jnp.finfo(jnp.float32).min)
    shares = jnp.exp(scores - highest)
    shares = shares / jnp.maximum(shares.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return jnp.einsum("...ts,...sd->...td", shares.astype(v.dtype), v)


class Interpreter(torch.fx.Interpreter):
    """Runs an exported program on JAX's arrays."""

    def __init__(self, program: torch.fx.GraphModule, table: Mapping[Any, Any]) -> None:
        super().__init__(program)
        self.table = table

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operator."""
        if not isinstance(target, torch._ops.OpOverload):
            return super().call_function(target, args, kwargs)
        return found(target, self.table)(*args, **kwargs)


def found(target: Any, table: Mapping[Any, Any]) -> Any:
    """The function of an operator, of all its forms if it has none of its own."""
    return table.get(target, table.get(target.overloadpacket))


def flat(inputs: Mapping[str, Tensor | Sequence[Tensor]]) -> dict[str, Tensor]:
    """Inputs, one by one."""
    found = dict[str, Tensor]()
    for name, one in inputs.items():
        found |= {name: one} if isinstance(one, Tensor) else {f"{name}.{n}": part for n, part in enumerate(one)}
    return found


def lowered(model: nn.Module, inputs: Mapping[str, Tensor | Sequence[Tensor]]) -> Lowered:
    """A module whose compressed layers are plain ones, on inputs of such shapes, by the names of forward's parameters.

    Raises:
        ModelError: torch.export cannot follow the module, it uses an operator that is unknown, or torchax is missing.
    """
    table = operators()
    program = exported(model, inputs)
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        program.graph.erase_node(node)  # it would ask arrays for their device
    check(program.graph, table)
    state = {**program.constants, **program.state_dict}
    unique, same = once({own: tensor for own, tensor in state.items() if isinstance(tensor, Tensor)})
    specs, each = program.graph_signature.input_specs, flat(inputs)

    def function(tensors: Mapping[str, Any], given: Mapping[str, Any]) -> list[Any]:
        mine = iter(given[name] for name in each)
        arguments = [next(mine) if spec.target is None else tensors[same[spec.target]] for spec in specs]
        out = Interpreter(program.graph_module, table).run(*arguments, enable_io_processing=False)
        return list(out)

    read = {same[spec.target] for spec in specs if spec.target is not None}
    return Lowered(function=function, tensors={n: t for n, t in unique.items() if n in read}, inputs=each)


def exported(model: nn.Module, inputs: Mapping[str, Tensor | Sequence[Tensor]]) -> torch.export.ExportedProgram:
    """What a module computes, in core operators.

    Raises:
        ModelError: torch.export cannot follow it.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how torch.export itself is written
            program = torch.export.export(model.eval(), (), dict(inputs), strict=False)
            apart = torch.export.default_decompositions()
            for target in own_operators():
                apart.pop(target, None)
            whole: torch.export.ExportedProgram = program.run_decompositions(apart)
            return whole
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be lowered ({reason(error)}); what torch.export follows can be"
        ) from None


def check(graph: torch.fx.Graph, table: Mapping[Any, Any]) -> None:
    """See that every operator is known.

    Raises:
        ModelError: one is not.
    """
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and found(node.target, table) is None:
            raise ModelError(f"no lowering is known for {node.target}; torchax would have to learn it")


def once(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and by which name each of the others goes."""
    first: dict[int, str] = {}
    same = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    return {name: tensors[name] for name in first.values()}, same
