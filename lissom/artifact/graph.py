"""The exported graph of a module: what it computes, without its class and without its weights.

torch.export's own archive keeps a copy of the weights and pickles the example, so only its serialized program, which is
JSON, is written; the weights come from the folder's safetensors. A compressed layer is one operator in it, by its name,
and a layer again where the graph is read, so that it runs on the kernel that fits it.
"""

import inspect
import json
import re
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call
from torch.utils import _pytree as trees

from lissom.artifact.datatypes import NAMES
from lissom.calibrate import Batch
from lissom.calibrate.data import TARGETS
from lissom.errors import ArtifactError, reason
from lissom.formats import CompressedLayer
from lissom.models.families import put

GRAPH = "graph.json"
LAYER = "lissom::layer"  # the operator that a compressed layer is
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
_exported: ContextVar[dict[str, nn.Module]] = ContextVar("exported")  # the layers, while a module is


@torch.library.register_fake(LAYER)  # type: ignore[untyped-decorator]
def _shaped(x: Any, name: str) -> Tensor:
    """What the layer of a name gives, without numbers."""
    layer = _exported.get()[name]
    held = layer.state_dict(keep_vars=True)
    state = {own: x.fake_mode.from_tensor(tensor, static_shapes=True) for own, tensor in held.items()}
    return functional_call(layer, state, (x,))  # type: ignore[no-any-return]


class Called(nn.Module):
    """Stands for a compressed layer while a module is exported."""

    def __init__(self, name: str, layer: CompressedLayer) -> None:
        super().__init__()
        self.name, self.layer = name, (layer,)  # in a tuple: its tensors are none of the graph's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"][0], name)

    def forward(self, x: Tensor) -> Tensor:
        """One operator."""
        return torch.ops.lissom.layer(x, self.name)  # type: ignore[no-any-return]


def export(model: nn.Module, example: Batch, file: Path, layers: Collection[str]) -> dict[str, Tensor]:
    """Write the graph; returns the constants that it needs beside the module's state, to be stored with the weights.

    The compressed layers of these names become operators, in place.

    Raises:
        ArtifactError: torch.export cannot follow the module.
    """
    from torch._export.serde.serialize import SerializeError, serialize  # a second to import, and seldom needed

    given = arguments(model, example)
    order = [name for name in inspect.signature(model.forward).parameters if name in given]  # without names it is this
    batch = {name: grown(given[name]) for name in dict.fromkeys([*order, *given])}
    called = {name: model.get_submodule(name) for name in layers}
    for name, part in list(model.named_modules(remove_duplicate=False)):
        for own, layer in called.items():
            if part is layer:
                put(model, name, Called(own, layer))
    token = _exported.set(called)
    try:
        program = torch.export.export(model, (), batch, dynamic_shapes={name: {0: Dim.AUTO} for name in batch})
        unwanted: dict[str, Any] = {name: False for name in BESIDE if name in inspect.signature(serialize).parameters}
        written = serialize(program, **unwanted)
    except (RuntimeError, SerializeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"save: {type(model).__name__} cannot be exported ({reason(error)}); "
            "save it without example= and load it by its class"
        ) from None
    finally:
        _exported.reset(token)
    file.write_bytes(without_traces(written.exported_program))
    return {f"graph.constant.{name}": value for name, value in program.constants.items() if isinstance(value, Tensor)}


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


class Program(nn.Module):
    """An exported graph that can stand where a module stands."""

    def __init__(self, program: torch.export.ExportedProgram, layers: Mapping[str, CompressedLayer]) -> None:
        super().__init__()
        self.inputs = program.graph_signature.user_inputs
        _, named = trees.tree_unflatten(self.inputs, program.call_spec.in_spec)
        self.named = bool(named)  # or given in order, as in folders of lissom before
        whole: Any = program.module(check_guards=False)
        self.graph = torch.fx.GraphModule(whole, whole.graph)  # a plain one, which may be switched between modes
        for name, layer in layers.items():
            self.graph.add_submodule(name, layer)
        for node in self.graph.graph.find_nodes(op="call_function", target=torch.ops.lissom.layer.default):
            x, name = node.args
            with self.graph.graph.inserting_before(node):
                node.replace_all_uses_with(self.graph.graph.call_module(name, (x,)))
            self.graph.graph.erase_node(node)
        self.graph.recompile()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run the graph on its inputs, given in order or by name."""
        given = {**dict(zip(self.inputs, arguments, strict=False)), **named}
        return self.graph(**given) if self.named else self.graph(*(given[str(name)] for name in self.inputs))


def run_graph(
    file: Path, stored: tuple[dict[str, Tensor], dict[str, Tensor]], layers: Mapping[str, CompressedLayer]
) -> nn.Module:
    """The module of a written graph, of what is stored as its state and constants, and its compressed layers.

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
    return Program(program, layers).eval()
