"""ONNX: any module as one file for ONNX Runtime and whatever else reads it.

torch.onnx writes what torch.export follows, with nodes that compute with whole numbers in the places of compressed
layers (layers.py). Numbers of 4 bits, which PyTorch does not have, get their type at the end.

A file of protobuf holds 2 GB. Weights that are more lie in a second file, of the same name and `.data`, which the first
one names: the two are moved together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lissom.errors import ArtifactError, ModelError, reason
from lissom.export.graphs.layers import AS_ASKED, stand
from lissom.export.graphs.nodes import HALVES
from lissom.export.graphs.program import axes_of, followed, in_float32, names_of, quietly
from lissom.export.handover import Given
from lissom.files import replacing
from lissom.formats import Weight

VERSION = 21  # the first whose DequantizeLinear knows groups and 4 bits
SMALL = 64  # numbers that may be computed with beforehand: shapes, and no weights, which would become floating point
MOST = 2**31 - 2**24  # bytes that a file of protobuf can have, less what the graph itself may take
APART = 1024  # bytes from which on a tensor is among those that lie in a second file


def write(given: Given, taken: Mapping[str, Weight], out: Path) -> None:
    """One file of everything, or one and a second for the weights.

    Raises:
        ModelError: a package is missing, or torch cannot follow the module.
        ArtifactError: a name is taken, or the disk is full.
    """
    keep(program(given, taken, "onnx", AS_ASKED).model, out)


def keep(model: Any, out: Path) -> None:
    """Write what torch.onnx holds.

    Raises:
        ArtifactError: a name is taken, or the disk is full.
    """
    import onnx_ir as ir

    weights = (value.const_value for value in model.graph.initializers.values())
    if sum(tensor.nbytes for tensor in weights if tensor is not None) <= MOST:
        with replacing(out) as file:
            ir.save(model, file, format="protobuf")
        return
    beside = out.with_name(f"{out.name}.data")
    if beside.exists():
        raise ArtifactError(f"{beside} exists already, and the weights are to lie there; remove it")
    try:
        with replacing(out) as file:
            ir.save(model, file, format="protobuf", external_data=beside.name, size_threshold_bytes=APART)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def program(given: Given, taken: Mapping[str, Weight], target: str, asks: Mapping[str, str]) -> Any:
    """A model as torch.onnx holds it; for `asks` see `stand`.

    Raises:
        ModelError: a package is missing, or torch cannot follow the module.
    """
    try:
        from onnxscript.optimizer import optimize  # torch.onnx needs the package too, and says so less clearly
    except ImportError:
        raise ModelError(
            f"{target}: needs the package onnxscript; install it with `pip install lissom[{target}]`"
        ) from None
    signature, model = in_float32(given, taken)
    with quietly():
        graph = followed(stand(model, asks), signature, given)
        try:
            made: Any = torch.onnx.export(
                graph,
                dynamo=True,
                input_names=names_of(signature, "inputs"),
                output_names=names_of(signature, "outputs"),
                dynamic_shapes=(tuple(axes_of(signature)),),
                opset_version=VERSION,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ModelError(f"{given.folder}: torch.onnx cannot write it ({reason(error)})") from None
        narrow(made)
        optimize(made.model, input_size_limit=SMALL)
    return made


def narrow(made: Any) -> None:
    """Give numbers of 4 bits their type, and leave out in which files of whose machine a node was written."""
    import ml_dtypes
    import onnx_ir as ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(made.model)
    for name, value in made.model.graph.initializers.items():
        kind = name.rpartition("_")[2]
        if kind in HALVES:
            value.const_value = ir.tensor(value.const_value.numpy().astype(getattr(ml_dtypes, kind)), name=name)
            value.dtype = value.const_value.dtype
