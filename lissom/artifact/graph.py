"""The exported graph of a module: what it computes, without its class and without its weights.

torch.export's own archive keeps a copy of the weights and pickles the example, so only its serialized program, which is
JSON, is written; the weights come from the folder's safetensors. A layer that is compressed, or may be, is one operator
in it, by its name, and a layer again where the graph is read, there to be run on the kernel that fits it or compressed.
So are the steps of recurrent layers, of which there may then be any number.
"""

import inspect
import json
import re
import warnings
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.func import functional_call
from torch.utils import _pytree as trees

from lissom.artifact.datatypes import NAMES
from lissom.calibrate import Batch
from lissom.calibrate.data import TARGETS
from lissom.errors import ArtifactError, reason
from lissom.models.families import put

GRAPH = "graph.json"
LAYER, STEPS = "lissom::layer", "lissom::steps"  # the operators that layers and steps are
OUTPUTS = re.compile(rb"(transformers(?:\.\w+)*\.modeling_\w+)\.\w+")  # whose outputs are known once it is imported
BESIDE = ("serialize_state_dict", "serialize_constants", "serialize_example_inputs")  # not to be made; older torch must


def arguments(model: nn.Module, example: Batch) -> dict[str, Tensor]:
    """The inputs of an example batch by the names of forward's parameters, targets left out."""
    if isinstance(example, Mapping):
        return {name: value for name, value in example.items() if name not in TARGETS}
    first = next(iter(inspect.signature(model.forward).parameters))
    return {first: example[0] if isinstance(example, tuple) else example}


def signature_of(model: nn.Module, example: Batch) -> dict[str, Any]:
    """Inputs and outputs in the terms of the Open Inference Protocol; -1 stands for the batch.

    Raises:
        ArtifactError: the module does not take the example.
    """
    inputs = arguments(model, example)
    try:
        with torch.no_grad():
            result = model(**inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(f"save: {type(model).__name__} does not take the example given: {reason(error)}") from None
    return {
        "inputs": [tensor_signature(name, tensor) for name, tensor in inputs.items()],
        "outputs": [tensor_signature(name, tensor) for name, tensor in named_outputs(result).items()],
    }


def named_outputs(result: Any) -> dict[str, Tensor]:
    """A module's tensors by name: `output` for one, `output_0` and so on for several, a mapping's own names."""
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items() if isinstance(value, Tensor)}
    return {f"output_{n}": value for n, value in enumerate(result) if isinstance(value, Tensor)}


def tensor_signature(name: str, tensor: Tensor) -> dict[str, Any]:
    """Name, datatype and shape, the first dim being the batch."""
    return {"name": name, "datatype": NAMES[tensor.dtype], "shape": [-1, *tensor.shape[1:]]}


torch.library.define(LAYER, "(Tensor x, str name) -> Tensor")
torch.library.define(STEPS, "(Tensor gates, Tensor[] kept, str name) -> Tensor[]")
_exported: ContextVar[dict[str, nn.Module]] = ContextVar("exported")  # the layers, while a module is


@torch.library.register_fake(LAYER)  # type: ignore[untyped-decorator]
def _shaped(x: Any, name: str) -> Tensor:
    """What the layer of a name gives, without numbers."""
    layer = _exported.get()[name]
    held = layer.state_dict(keep_vars=True)
    state = {own: x.fake_mode.from_tensor(tensor, static_shapes=True) for own, tensor in held.items()}
    return functional_call(layer, state, (x,))  # type: ignore[no-any-return]


@torch.library.register_fake(STEPS)  # type: ignore[untyped-decorator]
def _shaped_steps(gates: Tensor, kept: list[Tensor], name: str) -> list[Tensor]:
    """What the steps of a name give, without numbers."""
    return [gates.new_empty(*gates.shape[:2], kept[0].shape[-1]), *map(torch.empty_like, kept)]


class Called(nn.Module):
    """Stands for a layer, or for steps, while a module is exported."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name, self.layer = name, (layer,)  # in a tuple: its tensors are none of the graph's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"][0], name)

    def forward(self, x: Tensor, *kept: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One operator."""
        if kept:
            return tuple(torch.ops.lissom.steps(x, kept, self.name))
        return torch.ops.lissom.layer(x, self.name)  # type: ignore[no-any-return]


def export(model: nn.Module, example: Batch, file: Path, layers: Collection[str]) -> dict[str, Tensor]:
    """Write the graph, in which the layers of these names are operators.

    Returns the constants that it needs beside the module's state, to be stored with the weights.

    Raises:
        ArtifactError: torch.export cannot follow the module.
    """
    from torch._export.serde.serialize import SerializeError, serialize  # a second to import, and seldom needed

    given = arguments(model, example)
    order = [name for name in inspect.signature(model.forward).parameters if name in given]  # without names it is this
    batch = {name: grown(given[name]) for name in dict.fromkeys([*order, *given])}
    try:
        program = with_operators(model, batch, {name: model.get_submodule(name) for name in layers})
        unwanted: dict[str, Any] = {name: False for name in BESIDE if name in inspect.signature(serialize).parameters}
        written = serialize(program, **unwanted)
    except (RuntimeError, SerializeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"save: {type(model).__name__} cannot be exported ({reason(error)}); "
            "save it without example= and load it by its class"
        ) from None
    file.write_bytes(without_traces(written.exported_program))
    return {f"graph.constant.{name}": value for name, value in program.constants.items() if isinstance(value, Tensor)}


def with_operators(
    model: nn.Module, batch: dict[str, Tensor], layers: dict[str, nn.Module]
) -> torch.export.ExportedProgram:
    """The program of a module, in which layers are operators."""
    names = {layer: name for name, layer in layers.items()}
    places = [(name, part) for name, part in model.named_modules(remove_duplicate=False) if part in names]
    token = _exported.set(layers)
    try:
        for place, layer in places:
            put(model, place, Called(names[layer], layer))
        return torch.export.export(model, (), batch, dynamic_shapes={name: {0: Dim.AUTO} for name in batch})
    finally:
        _exported.reset(token)
        for place, layer in places:
            put(model, place, layer)


def without_traces(written: bytes) -> bytes:
    """The program without the notes that tell where in which file a node was written."""
    program = json.loads(written)
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    return json.dumps(program, separators=(",", ":")).encode()


def without_caches(model: nn.Module) -> None:
    """Let models of transformers, in place, give back tensors alone: no graph holds their keys and values."""
    for part in model.modules():
        config = getattr(part, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # type: ignore[union-attr]


def grown(tensor: Tensor) -> Tensor:
    """A batch of two or more, because a dim of one is taken to be always one."""
    return tensor if tensor.shape[0] > 1 else torch.cat([tensor, tensor])


def parameters(written: bytes) -> list[str]:
    """The names of the state that the graph takes to be parameters."""
    inputs = json.loads(written)["graph_module"]["signature"]["input_specs"]
    return [spec["parameter"]["parameter_name"] for spec in inputs if "parameter" in spec]


class Program(fx.GraphModule):
    """An exported graph that can stand where a module stands; it takes its inputs in order or by name."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of how its graphs are copied
            made = super().__deepcopy__(memo)
        assert isinstance(made, Program)
        type(made).__name__ = type(self).__name__
        return made


def module_of(program: torch.export.ExportedProgram, layers: Mapping[str, nn.Module], kind: str) -> Program:
    """A program as a module of a class that is called so, in which what were operators are these layers."""
    whole: Any = program.module(check_guards=False)
    for name, layer in layers.items():
        whole.add_submodule(name, layer)
    for operator in (torch.ops.lissom.layer.default, torch.ops.lissom.steps.default):
        for node in whole.graph.find_nodes(op="call_function", target=operator):
            x, *kept, name = node.args
            with whole.graph.inserting_before(node):
                node.replace_all_uses_with(whole.graph.call_module(name, (x, *(kept[0] if kept else ()))))
            whole.graph.erase_node(node)
    codegen, inputs = whole.graph._codegen, program.graph_signature.user_inputs
    if not trees.tree_unflatten(inputs, program.call_spec.in_spec)[1]:  # given in order, as in folders of lissom before
        codegen.pytree_info = codegen.pytree_info._replace(orig_args=list(inputs))
    return Program(whole, whole.graph, kind)  # not what torch makes, which cannot be switched between modes


def run_graph(
    file: Path, stored: tuple[dict[str, Tensor], dict[str, Tensor]], layers: Mapping[str, nn.Module], kind: str
) -> nn.Module:
    """The module of a written graph, of what is stored as its state and constants, its layers, and its class's name.

    Raises:
        ArtifactError: this torch does not read it.
    """
    from torch._export.serde.serialize import SerializedArtifact, SerializeError, deserialize

    state, constants = stored
    try:
        written = file.read_bytes()
        for place in {found.group(1).decode() for found in OUTPUTS.finditer(written)}:
            import_module(place)
        state = state | {name: nn.Parameter(state[name], requires_grad=False) for name in parameters(written)}
        program = deserialize(SerializedArtifact(written, state, constants, ((), {})))  # type: ignore[arg-type]
    except (ImportError, RuntimeError, SerializeError, ValueError, KeyError, AssertionError) as error:
        raise ArtifactError(
            f"{file} cannot be run by torch {torch.__version__} ({reason(error)}); load it with model="
        ) from None
    return module_of(program, layers, kind).eval()
