"""A model lowered for TPUs: a program that JAX runs, its weights, and what TPUs' own compiler makes of it.

The folder has

- `program.jax`, which `jax.export.deserialize` reads, for TPUs and for processors; it is called with two mappings, the
  tensors of the weights' file and the inputs;
- `model.safetensors`, in which integers of four bits take a byte each: JAX has four bits, and gets them as `report.json`
  says;
- `report.json`: of one chip the bytes and the work of a step, and how far the outputs are from the model's.

A language model computes in bfloat16, as TPUs multiply, another module in the type that it has.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lissom.artifact.datatypes import DATATYPES
from lissom.artifact.graph import named_outputs
from lissom.artifact.manifest import building
from lissom.errors import ModelError
from lissom.export.chips import Compiled, Shares, check, compiled
from lissom.export.handover import Form, Given
from lissom.export.lower import Lowered, dtype_of, jax_here, lowered
from lissom.export.plain import NARROW, WIDE, Integers, Plain, Values, Whole, make_plain, plain_of
from lissom.formats import CompressedEmbedding, CompressedLayer, Dense, LowRank, Weight
from lissom.models import compressible
from lissom.models.families import Family, family_of
from lissom.models.layers import weight_of
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn

BATCH, LENGTH = 8, 128  # of the inputs that a program is made for
GROUP = 32
PROGRAM, WEIGHTS, REPORT = "program.jax", "model.safetensors", "report.json"


def holds(weight: Weight, layer: nn.Module) -> Form | None:
    """The form that holds a weight as it is: floats, integers with scales, and what is made of those."""
    plain = plain_of(weight, layer, torch.float32)
    if plain is None:
        return None
    bits = sum(bits_of(name, part) for name, part in plain.named_buffers()) / max(weight.shape[0] * weight.shape[1], 1)
    return Form(name=named(plain), bits=bits)


def bits_of(name: str, tensor: Tensor) -> int:
    """The bits of a tensor."""
    return tensor.numel() * (4 if name.endswith(NARROW) else 8 * tensor.element_size())


def named(plain: Plain) -> str:
    """What a weight is called."""
    if isinstance(plain, Values):
        return str(plain.values.dtype).removeprefix("torch.")
    if isinstance(plain, Whole):
        groups, _, group = plain.codes.shape
        inputs = f", inputs of {plain.inputs} bits" if isinstance(plain, Integers) else ""
        each = "a scale for each row" if groups == 1 else f"groups of {group}"
        return f"{plain.name}, {each}{inputs}"
    parts = [named(part) for part in plain.children() if isinstance(part, Plain)]
    return f"{type(plain).__name__.lower()} of {' and '.join(parts)}"


def nearest(weight: Weight, layer: nn.Module) -> Weight:
    """Eight bits in small groups; what is looked up, or has rows that groups do not divide, in 16 bits."""
    dense, i = weight.dense(), weight.shape[1]
    if isinstance(layer, (nn.Embedding, CompressedEmbedding)) or i % GROUP:
        return Dense(values=dense.bfloat16())
    return rtn(Dense(values=dense), Moments.blank(i, dense.device), bits=8, group=GROUP, clip=False)


def ready(given: Given, taken: Mapping[str, Weight]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module to lower, and inputs for it."""
    model = given.changed(taken)
    if given.config is None:
        make_plain(model, torch.float32)
        return model, examples(given)
    make_plain(model, torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(given.config.vocab_size, (BATCH, LENGTH), generator=drawn)
    return Scores(model), {"tokens": tokens}


def examples(given: Given) -> dict[str, Tensor]:
    """Inputs of the shapes and types that a folder says.

    Raises:
        ModelError: it says none.
    """
    if not given.opened.signature:
        raise ModelError(f"{given.folder} does not say what goes in; save the module with example=a batch")
    drawn, found = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for one in given.opened.signature["inputs"]:
        batch, *rest = one["shape"]
        shape, dtype = [BATCH, *(LENGTH if size < 0 else size for size in rest)], DATATYPES[one["datatype"]]
        found[one["name"]] = (
            torch.randn(shape, generator=drawn, dtype=dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
        )
    return found


def shares_of(model: nn.Module, family: Family | None) -> dict[str, tuple[int, ...]]:
    """Along which dims each tensor of a layer may be shared out: outputs, or inputs where they are shared out already."""
    inputs = () if family is None else (family.mixes, family.sums)
    last = {name.rpartition(".")[2] for name in inputs}
    found = dict[str, tuple[int, ...]]()
    for name, layer in compressible(model).items():
        dim = int(name.rpartition(".")[2] in last)
        sizes = weight_of(layer).shape
        for own, tensor in layer.state_dict().items():
            found[f"{name}.{own}"] = dims_of(tuple(tensor.shape), own.rpartition(".")[2], sizes)[dim]
    return found


def dims_of(shape: tuple[int, ...], name: str, sizes: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which dims of a tensor stand for outputs, and which for inputs."""
    if name in (NARROW, WIDE):
        return (1,), (0, 2)
    if name in ("scale", "offset"):
        return (1,), (0,)
    outputs = (0,) if shape[0] == sizes[0] else ()
    return outputs, (1,) if len(shape) == 2 and shape[1] == sizes[1] else ()


def write(given: Given, taken: Mapping[str, Weight], out: Path, topology: str = "v5e-1") -> None:
    """The folder, for a topology as "v5e-8".

    Raises:
        RecipeError: there is no such topology.
        ModelError: the module cannot be lowered, or not compiled; or JAX is not installed.
        ArtifactError: the name is taken, or the disk is full.
    """
    check(topology)
    model, inputs = ready(given, taken)
    family = None if given.config is None else family_of(given.config.model_type)
    low = lowered(model, inputs)
    found = compiled(low, shares_of(model, family), topology)
    jax = jax_here()
    arrays = low.arrays()
    function = jax.jit(low.function)
    program = jax.export.export(function, platforms=("tpu", "cpu"))(*low.shapes())
    said = [numbers(one) for one in function(*arrays)]
    report = {
        **told(found),
        "inputs": {name: {"shape": list(one.shape), "type": str(dtype_of(name, one))} for name, one in inputs.items()},
        "four_bits": [name for name in low.tensors if name.endswith(NARROW)],
        "numerics": numerics(given.model if family is None else Scores(given.model), inputs, said),
    }
    with building(out) as folder:
        (folder / PROGRAM).write_bytes(program.serialize())
        save_file({name: tensor.detach().clone() for name, tensor in low.tensors.items()}, folder / WEIGHTS)
        (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")


def told(found: Compiled) -> dict[str, Any]:
    """What the compiler says, for a report."""
    return {**dataclasses.asdict(found), "together": found.together, "fits": found.fits}


def numerics(model: nn.Module, inputs: Mapping[str, Tensor], said: list[Tensor]) -> dict[str, float]:
    """How far XLA's outputs on a processor are from the model's: the largest difference, and of tokens' logits KL."""
    with torch.no_grad():
        result = model(**inputs)
    own = list(named_outputs(result).values())
    found = {"difference": max(float((one - other).abs().max()) for one, other in zip(said, own, strict=True))}
    if not isinstance(model, Scores):
        return found
    p, q = own[0].log_softmax(-1), said[0].log_softmax(-1)
    return {**found, "kl": float((p.exp() * (p - q)).sum(-1).mean())}


def numbers(array: Any) -> Tensor:
    """An array of JAX as a tensor in float32."""
    return torch.tensor(array.astype("float32").tolist())
