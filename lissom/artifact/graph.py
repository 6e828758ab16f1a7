"""The exported graph of a module: what it computes, without its class and without its weights.

torch.export's own archive keeps a copy of the weights and pickles the example, so only its serialized program, which is
JSON, is written; the weights come from the folder's safetensors.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lissom.calibrate import Batch
from lissom.calibrate.data import TARGETS
from lissom.errors import ArtifactError, reason

GRAPH = "graph.json"
BESIDE = ("serialize_state_dict", "serialize_constants", "serialize_example_inputs")  # not to be made; older torch must
DATATYPES = {
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.int16: "INT16",
    torch.int8: "INT8",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
}


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
    return {"name": name, "datatype": DATATYPES[tensor.dtype], "shape": [-1, *tensor.shape[1:]]}


def export(model: nn.Module, example: Batch, file: Path) -> dict[str, Tensor]:
    """Write the graph; returns the constants that it needs beside the module's state, to be stored with the weights.

    Raises:
        ArtifactError: torch.export cannot follow the module.
    """
    from torch._export.serde.serialize import SerializeError, serialize  # a second to import, and seldom needed

    inputs = arguments(model, example)
    leading = list(inspect.signature(model.forward).parameters)[: len(inputs)]
    if set(leading) != set(inputs):
        raise ArtifactError(
            f"save: the example has {', '.join(inputs)}; to export, give forward's first ones: {', '.join(leading)}"
        )
    batch = tuple(grown(inputs[name]) for name in leading)
    try:
        program = torch.export.export(model, batch, dynamic_shapes=tuple({0: Dim.AUTO} for _ in batch))
        unwanted: dict[str, Any] = {name: False for name in BESIDE if name in inspect.signature(serialize).parameters}
        written = serialize(program, **unwanted)
    except (RuntimeError, SerializeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"save: {type(model).__name__} cannot be exported ({reason(error)}); "
            "save it without example= and load it by its class"
        ) from None
    file.write_bytes(without_traces(written.exported_program))
    return {f"graph.constant.{name}": value for name, value in program.constants.items() if isinstance(value, Tensor)}


def without_traces(written: bytes) -> bytes:
    """The program without the notes that tell where in which file a node was written."""
    program = json.loads(written)
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    return json.dumps(program, separators=(",", ":")).encode()


def grown(tensor: Tensor) -> Tensor:
    """A batch of two or more, because a dim of one is taken to be always one."""
    return tensor if tensor.shape[0] > 1 else torch.cat([tensor, tensor])


def parameters(written: bytes) -> list[str]:
    """The names of the state that the graph takes to be parameters."""
    inputs = json.loads(written)["graph_module"]["signature"]["input_specs"]
    return [spec["parameter"]["parameter_name"] for spec in inputs if "parameter" in spec]


class Program(nn.Module):
    """An exported graph that can stand where a module stands; it only ever evaluates."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.graph = [program.module(check_guards=False)]  # in a list: a graph refuses to be switched between modes
        self.inputs = program.graph_signature.user_inputs

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run the graph on its inputs, given in order or by name."""
        return self.graph[0](*arguments, *(named[str(name)] for name in self.inputs[len(arguments) :]))


def run_graph(file: Path, stored: tuple[dict[str, Tensor], dict[str, Tensor]]) -> nn.Module:
    """The module of a written graph.

    Raises:
        ArtifactError: this torch does not read it.
    """
    from torch._export.serde.serialize import SerializedArtifact, SerializeError, deserialize

    state, constants = stored
    try:
        written = file.read_bytes()
        state = state | {name: nn.Parameter(state[name], requires_grad=False) for name in parameters(written)}
        program = deserialize(SerializedArtifact(written, state, constants, ((), {})))  # type: ignore[arg-type]
    except (RuntimeError, SerializeError, ValueError, KeyError, AssertionError) as error:
        raise ArtifactError(
            f"{file} cannot be run by torch {torch.__version__} ({reason(error)}); load it with model="
        ) from None
    return Program(program)
