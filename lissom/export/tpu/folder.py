"""A model lowered for TPUs: programs that JAX runs, their weights, and what TPUs' own compiler makes of them.

The folder has

- programs, which `jax.export.deserialize` reads, for TPUs and for processors: of a language model `prompt.jax` and
  `step.jax`, which share a cache of keys and values, of another module `module.jax`. They are called with two mappings,
  the tensors of the weights' file and the inputs;
- `model.safetensors`, in which integers of four bits take a byte each; those that JAX must make int4 are named in
- `report.json`, which says of each program what goes in, the bytes and the work of one chip, and how far what comes out
  is from what the model says.

A language model computes in bfloat16, as TPUs multiply, another module in the type that it has. Of a mixture every
expert is given every token, and what those say that were not chosen counts nothing: what runs must not hang on numbers.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lissom.artifact.datatypes import DATATYPES
from lissom.artifact.graph import named_outputs
from lissom.artifact.manifest import building
from lissom.errors import ModelError
from lissom.export.handover import Form, Given
from lissom.export.tpu.chips import check, compiled
from lissom.export.tpu.lower import Lowered, dtype_of, jax_here, lowered
from lissom.export.tpu.plain import NARROW, WIDE, Integers, Plain, PlainLayer, Values, Whole, make_plain, plain_of
from lissom.export.tpu.steps import Steps, inputs_of
from lissom.formats import CompressedEmbedding, Dense, Weight
from lissom.models import compressible
from lissom.models.apart import apart
from lissom.models.experts import unchosen
from lissom.models.families import Family, family_of
from lissom.models.layers import weight_of
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn

BATCH, LENGTH, ROOM = 8, 128, 1024  # examples, and tokens of a prompt and of the cache, that programs are made for
GROUP = 32
FLOATS = ("FP16", "BF16", "FP32", "FP64")
WEIGHTS, REPORT = "model.safetensors", "report.json"


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


def programs(given: Given, taken: Mapping[str, Weight]) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Each program's name, with the module to lower and inputs for it; the weights of all are the same."""
    model = unchosen(apart(given.changed(taken)))
    if given.config is None:
        return {"module": (make_plain(model, torch.float32), examples(given))}
    model = make_plain(model, torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(given.config.vocab_size, (BATCH, LENGTH + 1), generator=drawn)
    inputs = inputs_of(model, tokens[:, :LENGTH], ROOM)
    return {"prompt": (Steps(model), inputs), "step": (Steps(model), {**inputs, "tokens": tokens[:, LENGTH:]})}


def examples(given: Given) -> dict[str, Tensor]:
    """Inputs of the shapes and types that a folder says.

    Raises:
        ModelError: it says none.
    """
    if not given.opened.signature:
        raise ModelError(f"{given.folder} does not say what goes in; save the module with example=a batch")
    drawn, found = torch.Generator().manual_seed(0), dict[str, Tensor]()
    length = min(LENGTH, getattr(given.model, "longest", LENGTH))  # a text encoder takes so many tokens
    for one in given.opened.signature["inputs"]:
        shape = (BATCH, *(length if size < 0 else size for size in one["shape"][1:]))
        numbers = torch.randn(shape, generator=drawn) if one["datatype"] in FLOATS else torch.ones(shape)
        found[one["name"]] = numbers.to(DATATYPES[one["datatype"]])
    return found


def shares_of(model: nn.Module, family: Family | None) -> dict[str, tuple[int, ...]]:
    """Along which dims each tensor of a layer may be shared out: outputs, or inputs that are so already."""
    inputs = () if family is None else (family.mixes, family.sums)
    last = {name.rpartition(".")[2] for name in inputs}
    found = dict[str, tuple[int, ...]]()
    plain = {name: part for name, part in model.named_modules() if isinstance(part, PlainLayer)}
    for name, layer in {**compressible(model), **plain}.items():
        dim = int(name.rpartition(".")[2] in last)
        sizes = layer.sizes if isinstance(layer, PlainLayer) else weight_of(layer).shape
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
    family = None if given.config is None else family_of(given.config.model_type)
    made = programs(given, taken)
    low = {name: lowered(model, inputs) for name, (model, inputs) in made.items()}
    differ, told = numerics(given, low), dict[str, Any]()
    tensors = {own: tensor for one in low.values() for own, tensor in one.tensors.items()}
    with building(out) as folder:
        for name, one in low.items():
            (folder / f"{name}.jax").write_bytes(portable(one))
            found = compiled(one, shares_of(made[name][0], family) | heads_of(one), topology)
            told[name] = {
                "inputs": {own: described(own, tensor) for own, tensor in one.inputs.items()},
                "compiled": {**asdict(found), "together": found.together, "fits": found.fits},
                "numerics": differ[name],
            }
        save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
        report = {"programs": told, "int4": [name for name in tensors if name.endswith(NARROW)]}
        (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")


def portable(low: Lowered) -> bytes:
    """A program as JAX keeps it, for TPUs and for processors, of any number of chips that its caller has."""
    jax = jax_here()
    program = jax.export.export(jax.jit(low.function), platforms=("tpu", "cpu"))(*low.shapes())
    return bytes(program.serialize())


def described(name: str, tensor: Tensor) -> dict[str, Any]:
    """Shape and type of an input."""
    return {"shape": list(tensor.shape), "type": str(dtype_of(name, tensor))}


def heads_of(low: Lowered) -> dict[str, tuple[int, ...]]:
    """Keys and values are shared out by heads."""
    return {name: (1,) for name in low.inputs if name.startswith("cache.")}


def numerics(given: Given, low: Mapping[str, Lowered]) -> dict[str, dict[str, float]]:
    """How far what programs say on a processor is from what the model says, by the program."""
    if given.config is not None:
        return numerics_of_tokens(given, low["prompt"], low["step"])
    with torch.no_grad():
        own = named_outputs(given.model(**low["module"].inputs)).values()
    apart = [float((mine - one).abs().max()) for mine, one in zip(run(low["module"]), own, strict=True)]
    return {"module": {"difference": max(apart)}}


def numerics_of_tokens(given: Given, prompt: Lowered, step: Lowered) -> dict[str, dict[str, float]]:
    """The same of logits, with their KL: those of a prompt, and those of a token behind it, which reads its cache."""
    tokens = torch.cat([prompt.inputs["tokens"], step.inputs["tokens"]], 1)
    with torch.no_grad():
        own: Tensor = given.model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
    first, *cache = run(prompt)
    held = {f"cache.{n}": part.to(step.inputs[f"cache.{n}"].dtype) for n, part in enumerate(cache)}
    last = run(replace(step, inputs={**step.inputs, "place": torch.tensor(LENGTH), **held}))[0]
    found = dict[str, dict[str, float]]()
    for name, said, p in (("prompt", first, own[:, :LENGTH]), ("step", last, own[:, LENGTH:])):
        apart = p - said.log_softmax(-1)
        found[name] = {"difference": float(apart.abs().max()), "kl": float((p.exp() * apart).sum(-1).mean())}
    return found


def run(low: Lowered) -> list[Tensor]:
    """What a program says on a processor, in float32."""
    jax = jax_here()
    return [torch.tensor(jax.device_get(one.astype("float32"))) for one in jax.jit(low.function)(*low.arrays())]
