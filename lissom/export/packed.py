"""A folder in the layout of compressed-tensors, which transformers, vLLM and SGLang load.

A matrix of integers is a stream of bits in words of 32, as ours are, with scales and, where it is not symmetric, zero
points; one whose input becomes integers too is stored as int8. The config names the scheme of each layer.

transformers reads any number of bits, but zero points only of layers that it packs itself (5.24 with compressed-tensors
0.20): a grid that is not symmetric lies in a symmetric one with a bit more. vLLM and SGLang have kernels for 4 and 8
bits, in which fewer are exact as well; zero points of 4 bits are read by every GPU's, and what has more bits lies in a
symmetric grid of 8. They run as one what makes queries, keys and values, gates and what they let through, and all
experts of a block, which then need one scheme. vLLM's build for processors multiplies integers of 4 bits, and those of
8 whose inputs become integers too: what else is written is for GPUs, and counted in the report.

Shapes: o outputs, i inputs, g groups of a row.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lissom.artifact.manifest import building
from lissom.export.even import filled
from lissom.export.grid import Grid, grid_of
from lissom.export.handover import Form, Given
from lissom.formats import CompressedEmbedding, Dense, Dynamic, Weight
from lissom.formats.plane import pack
from lissom.models.families import at, family_of
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn

SIZES = (128, 64, 32)  # groups that the kernels know, beside whole rows
COPIED = ("tokenizer*", "special_tokens_map.json", "chat_template*", "generation_config.json", "vocab.json", "merges.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How many bits a runtime reads, in symmetric grids and in others.

    What is packed has rows of a multiple of `whole` inputs. With `experts` all those of a block are run as one.
    `on_processors` are the bits that it multiplies there too, None where that is no matter.
    """

    symmetric: tuple[int, ...]
    others: tuple[int, ...]
    whole: int = 1
    experts: bool = False
    on_processors: tuple[int, ...] | None = None


ANY = Reader(symmetric=(2, 3, 4, 5, 6, 7, 8), others=())
KERNELS = Reader(symmetric=(4, 8), others=(4,), whole=32, experts=True)
VLLM = replace(KERNELS, on_processors=(4,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a matrix of integers is written: bits, inputs that share a scale (0: a row); `inputs` become integers too."""

    bits: int
    size: int
    symmetric: bool
    inputs: bool = False

    def told(self) -> dict[str, Any]:
        """The scheme as the config says it, without the names of its layers."""
        whole = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "dynamic": False}
        group = {"strategy": "group", "group_size": self.size} if self.size else {"strategy": "channel"}
        tokens = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
        form = "int-quantized" if self.inputs else "pack-quantized"
        return {"weights": whole | group, "input_activations": tokens if self.inputs else None, "format": form}


def scheme_of(weight: Weight, reader: Reader, sizes: tuple[int, ...] | None = None) -> Scheme | None:
    """The scheme of fewest bits that holds a weight as it is, in a matrix of other sizes where they are given."""
    grid = grid_of(weight)
    if grid is not None and sizes is not None and sizes != tuple(weight.shape):
        grid = grid.filled(sizes)
    size = None if grid is None else size_of(grid)
    if grid is None or size is None:
        return None
    inputs = isinstance(weight, Dynamic) and weight.inputs == 8 and size == 0
    for bits in sorted({*reader.symmetric, *reader.others}):
        half = 2 ** (bits - 1)
        if bits in reader.symmetric and grid.within(-half, half - 1) and (bits == 8 or not inputs):
            return Scheme(bits=bits, size=size, symmetric=True, inputs=inputs)
        words = len(grid.codes) % (32 // bits) == 0  # where rows are run as one, so are the words of their zero points
        if bits in reader.others and grid.bits <= bits and words and not inputs:
            return Scheme(bits=bits, size=size, symmetric=False)
    return None


def size_of(grid: Grid) -> int | None:
    """The largest groups that can be named and have one scale each: 0 for a whole row, None if there are none."""
    if grid.scale.shape[1] == 1:
        return 0
    return next((size for size in SIZES if grid.group % size == 0), None)


def holds(reader: Reader, weight: Weight, layer: nn.Module) -> Form | None:
    """The form that holds a weight as it is."""
    if isinstance(weight, Dense):
        return Form(name=str(weight.values.dtype).removeprefix("torch."), bits=8 * weight.values.element_size())
    scheme = None if isinstance(layer, (nn.Embedding, CompressedEmbedding)) else scheme_of(weight, reader)
    return None if scheme is None else form_of(scheme, weight.shape[1])


def form_of(scheme: Scheme, inputs: int) -> Form:
    """What a scheme is called, and its bits in rows of so many inputs."""
    groups = f"groups of {scheme.size}" if scheme.size else "a scale for each row"
    rounded = ", inputs of 8 bits" if scheme.inputs else ""
    of_scale = (16 if scheme.symmetric else 16 + scheme.bits) / (scheme.size or inputs)
    return Form(name=f"int{scheme.bits}, {groups}{rounded}", bits=scheme.bits + of_scale)


def nearest(weight: Weight, layer: nn.Module) -> Weight:
    """Eight bits in the smallest groups; what is looked up, or has rows that groups do not divide, in 16 bits."""
    dense, i = weight.dense(), weight.shape[1]
    if isinstance(layer, (nn.Embedding, CompressedEmbedding)) or i % SIZES[-1]:
        return Dense(values=dense.bfloat16())
    return rtn(Dense(values=dense), Moments.blank(i, dense.device), bits=8, group=SIZES[-1], clip=False)


def siblings(reader: Reader, given: Given) -> Iterator[list[str]]:
    """Layers that a runtime makes one of."""
    family = family_of(given.config.model_type)
    for block, part in at(given.model, family.blocks).named_children():
        feeds = family.feeds(part)
        makers = [neurons for neurons, _ in feeds]
        if reader.experts and len(feeds) > 1:
            makers = [tuple(name for neurons, sums in feeds for name in (*neurons, sums))]
        for names in (family.heads, *makers):
            found = [f"{family.blocks}.{block}.{name}" for name in names]
            yield [name for name in found if name in given.weights]


def together(reader: Reader, given: Given, taken: dict[str, Weight]) -> dict[str, Weight]:
    """Where one of those that are run as one is in floating point, so are the others.

    So is one that no scheme holds in rows as long as those of the widest block.
    """
    found = {name: weight if fills(reader, given, name, weight) else floats(weight) for name, weight in taken.items()}
    for names in siblings(reader, given):
        if any(isinstance(found[name], Dense) for name in names):
            found |= {name: floats(found[name]) for name in names}
    return found


def fills(reader: Reader, given: Given, name: str, weight: Weight) -> bool:
    """Whether a weight is held in a matrix as wide as the widest block's."""
    if isinstance(weight, Dense):
        return True
    sizes = given.sizes[f"{name}.weight"]
    scheme = scheme_of(weight, reader, sizes)
    return scheme is not None and (scheme.inputs or sizes[1] % reader.whole == 0)


def floats(weight: Weight) -> Dense:
    """In 16 bits, unless it is in floating point."""
    return weight if isinstance(weight, Dense) else Dense(values=weight.dense().bfloat16())


def alike(reader: Reader, schemes: Mapping[str, Scheme], given: Given) -> dict[str, Scheme]:
    """Those that are run as one in the scheme that holds all of them; of more bits a symmetric one does."""
    found = dict(schemes)
    for names in siblings(reader, given):
        there = [name for name in names if name in schemes]
        own = [schemes[name] for name in there]
        if len(set(own)) > 1:
            bits = max(scheme.bits for scheme in own)
            joined = Scheme(
                bits=bits,
                size=min((scheme.size for scheme in own if scheme.size), default=0),
                symmetric=bits not in reader.others or all(scheme.symmetric for scheme in own),
                inputs=all(scheme.inputs for scheme in own),
            )
            found |= dict.fromkeys(there, joined)
    return found


def schemes_of(reader: Reader, given: Given, taken: Mapping[str, Weight]) -> dict[str, Scheme]:
    """The scheme of each matrix of integers, as it is written."""
    packed = {name: weight for name, weight in taken.items() if not isinstance(weight, Dense)}
    own = {name: scheme_of(weight, reader, given.sizes[f"{name}.weight"]) for name, weight in packed.items()}
    return alike(reader, {name: scheme for name, scheme in own.items() if scheme is not None}, given)


def forms(reader: Reader, given: Given, taken: Mapping[str, Weight]) -> dict[str, Form]:
    """How each matrix is written."""
    schemes = schemes_of(reader, given, taken)
    found = {name: form_of(scheme, given.sizes[f"{name}.weight"][1]) for name, scheme in schemes.items()}
    floating = {name: holds(reader, weight, given.model) for name, weight in taken.items() if name not in schemes}
    return found | {name: form for name, form in floating.items() if form is not None}


def written(name: str, grid: Grid, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of a matrix of integers."""
    scale = grid.scale if scheme.size == 0 else grid.scale_of(scheme.size)
    assert scale is not None
    found = {f"{name}.weight_scale": scale.half()}
    if scheme.inputs:
        return found | {f"{name}.weight": grid.codes.to(torch.int8)}
    half = 2 ** (scheme.bits - 1)
    zero = grid.zero if scheme.size == 0 else grid.zero.repeat_interleave(grid.group // scheme.size, 1)
    lowest = torch.full_like(zero, half) if scheme.symmetric or grid.within(-half, half - 1) else zero
    codes = grid.codes + lowest.repeat_interleave(grid.codes.shape[1] // lowest.shape[1], 1)
    found[f"{name}.weight_packed"] = pack(codes.to(torch.uint8), scheme.bits)
    found[f"{name}.weight_shape"] = torch.tensor(grid.codes.shape)
    if not scheme.symmetric:
        found[f"{name}.weight_zero_point"] = pack(lowest.T.contiguous().to(torch.uint8), scheme.bits).T.contiguous()
    return found


def write(reader: Reader, given: Given, taken: Mapping[str, Weight], out: Path) -> dict[str, Any]:
    """A folder of Hugging Face whose config says how its matrices are written; what comes back is what only GPUs run.

    Raises:
        ArtifactError: the name is taken, or the disk is full.
    """
    schemes = schemes_of(reader, given, taken)
    tensors = {name: filled(tensor, given.sizes[name]) for name, tensor in given.tensors.items()}
    for name, weight in taken.items():
        sizes = given.sizes[f"{name}.weight"]
        if isinstance(weight, Dense):
            tensors[f"{name}.weight"] = filled(weight.values, sizes)
        else:
            grid = grid_of(weight)
            assert grid is not None
            tensors |= written(name, grid.filled(sizes), schemes[name])
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with building(out) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = {
            **json.loads(given.config.to_json_string(use_diff=False)),
            "quantization_config": told(schemes, given),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        for pattern in COPIED:
            for file in given.folder.glob(pattern):
                shutil.copyfile(file, folder / file.name)
    return {} if reader.on_processors is None else for_gpus(reader.on_processors, schemes)


def for_gpus(on_processors: tuple[int, ...], schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """How many matrices are in a form that the runtime does not multiply without a GPU, where there are such."""
    away = sum(scheme.bits not in on_processors and not scheme.inputs for scheme in schemes.values())
    return {"refused": {"layers that it runs on a GPU only": away}} if away else {}


def told(schemes: Mapping[str, Scheme], given: Given) -> dict[str, Any]:
    """What the config says of all layers: each scheme with the names of its own, and those that have none."""
    groups: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        groups.setdefault(scheme, []).append(name)
    forms = {scheme.told()["format"] for scheme in groups}
    linear = [name for name, layer in given.model.named_modules() if is_linear(layer)]
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": next(iter(forms)) if len(forms) == 1 else "mixed-precision",
        "config_groups": {
            f"group_{n}": {"targets": names, **scheme.told()} for n, (scheme, names) in enumerate(groups.items())
        },
        "ignore": [name for name in linear if name not in schemes],
    }


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is, or stands for, a linear one."""
    return isinstance(layer, nn.Linear) or getattr(layer, "stands_for", None) is nn.Linear
