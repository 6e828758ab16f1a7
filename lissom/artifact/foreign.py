"""Language models that other tools have compressed: their integers and codebooks in lissom's formats, bit for bit.

    gptq                 codes packed along the inputs, scales and zeros for groups of them (Frantar et al., ICLR 2023)
    awq                  codes packed along the outputs, eight of them interleaved (Lin et al., MLSys 2024)
    compressed-tensors   packed integers, int8 with inputs of 8 bits, float8
    bitsandbytes         the 16 numbers of nf4, a scale for every 64 weights (Dettmers et al., NeurIPS 2023)

What no format here can hold, such as GPTQ's groups of inputs that do not lie side by side, becomes half floats.

SparseML and llm-compressor leave zeros in dense matrices where they prune. Where a folder says that they have, by its
config or a recipe beside it, those zeros are a mask.

Shapes: o outputs, i inputs, g groups of a row, w words.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from lissom.errors import ModelError
from lissom.files import read_json
from lissom.formats import Affine, Dense, Dynamic, Floats, Masked, Narrow, Palette, Weight
from lissom.formats.masked import sparse
from lissom.formats.narrow import KIND
from lissom.formats.plane import Plane, unpack
from lissom.models.checkpoint import zeros_only

Told = Mapping[str, Any]
DENSE = "dense"  # how compressed-tensors calls it
INTERLEAVED = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble in which AWQ keeps each of eight outputs


def told(folder: Path) -> Told | None:
    """What a folder's config says of compression by another tool, if by one that is known here.

    Raises:
        ModelError: it is pruned, and its zeros are not in its matrices.
    """
    found = read_json(folder / "config.json").get("quantization_config") if (folder / "config.json").is_file() else None
    if found and zeros_only(found):
        form = found["sparsity_config"].get("format", DENSE)
        if form != DENSE:
            raise ModelError(f"{folder} is pruned and written as {form!r}, which is not read; write it as {DENSE!r}")
        return None
    return found if found and found.get("quant_method") in METHODS else None


def pruned(folder: Path) -> bool:
    """Whether a folder says that another tool has pruned, and left the zeros in dense matrices."""
    if not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json")
    parts = [config, *(config.get(name) or {} for name in ("quantization_config", "compression_config"))]
    return (folder / "recipe.yaml").is_file() or any(part.get("sparsity_config") for part in parts)


def masked(tensors: Mapping[str, Tensor], layers: Iterable[str]) -> dict[str, Weight]:
    """The layers whose matrices have zeros enough for a mask, with that."""
    held = {name: tensors[f"{name}.weight"] for name in layers if f"{name}.weight" in tensors}
    return {name: Masked.of(matrix, matrix != 0) for name, matrix in held.items() if sparse(matrix)}


def taken(tensors: Mapping[str, Tensor], how: Told) -> tuple[dict[str, Weight], dict[str, Tensor]]:
    """The weights of the layers that a tool has compressed, and the tensors that are none of theirs.

    Raises:
        ModelError: a layer is written in a way that is not known here.
    """
    mark, weight_of = METHODS[how["quant_method"]]
    layers = [name.removesuffix(mark) for name in tensors if name.endswith(mark)]
    if not layers:
        raise ModelError(
            f"config.json says that {how['quant_method']} has compressed the model, and no layer is written so"
        )
    found, rest = dict[str, Weight](), dict(tensors)
    for layer in layers:
        own = {name.removeprefix(f"{layer}."): tensors[name] for name in tensors if name.startswith(f"{layer}.")}
        try:
            found[layer] = weight_of(layer, own, how)
        except KeyError as missing:
            raise ModelError(
                f"{layer}: {how['quant_method']} wrote no {missing} there; copy the folder again"
            ) from None
        for name in own:
            if name != "bias":
                del rest[f"{layer}.{name}"]
    return found, rest


def gptq(layer: str, parts: Mapping[str, Tensor], how: Told) -> Weight:
    """Of GPTQ, whose first version writes zeros less 1."""
    bits = int(how["bits"])
    scale = parts["scales"].T.contiguous()
    o, i = scale.shape[0], parts["qweight"].shape[0] * 32 // bits
    codes = unpack(parts["qweight"].T.contiguous(), bits, i)
    less = 0 if how.get("checkpoint_format") == "gptq_v2" else 1
    zero = unpack(parts["qzeros"], bits, o).T.to(torch.int16) + less
    place = parts.get("g_idx", torch.arange(i) // (i // scale.shape[1])).long()
    if torch.equal(place, torch.arange(i) // (i // scale.shape[1])):
        return grid(codes, scale, zero, bits)
    return Dense(values=((codes - zero[:, place]) * scale[:, place].float()).half())


def awq(layer: str, parts: Mapping[str, Tensor], how: Told) -> Weight:
    """Of AWQ, as its matrix products for several rows want it.

    Raises:
        ModelError: it is written for one row at a time.
    """
    if str(how.get("version", "gemm")).lower() != "gemm":
        raise ModelError(f"{layer}: AWQ of the version {how['version']!r} is not read; possible is 'gemm'")
    bits, scale = int(how["bits"]), parts["scales"].T.contiguous()
    codes, zero = (apart(parts[name], bits).T.contiguous() for name in ("qweight", "qzeros"))
    return grid(codes, scale, zero.to(torch.int16), bits)


def apart(words: Int32[Tensor, "n w"], bits: int) -> UInt8[Tensor, "n o"]:
    """AWQ's codes in their order."""
    codes = unpack(words, bits, words.shape[1] * 32 // bits)
    eights: Tensor = codes.unflatten(1, (-1, 8))[..., list(INTERLEAVED)]
    return eights.flatten(1)


def grid(codes: UInt8[Tensor, "o i"], scale: Float[Tensor, "o g"], zero: Tensor, bits: int) -> Affine:
    """Codes and their zeros [o, g], which may lie one above the highest code: those then take eight bits."""
    if bool((zero == 2 ** (bits - 1)).all()):
        return Affine.of(codes, scale, None, bits)
    return Affine.of(codes, scale, zero.to(torch.uint8), bits if int(zero.max()) < 2**bits else 8)


def packed(layer: str, parts: Mapping[str, Tensor], how: Told) -> Weight:
    """Of compressed-tensors.

    Raises:
        ModelError: the scheme is none of those that are known here.
    """
    scheme = scheme_of(layer, how)
    weights, inputs = scheme["weights"], scheme.get("input_activations")
    scale, bits = parts["weight_scale"], int(weights["num_bits"])
    scale = scale.reshape(-1, 1) if scale.dim() < 2 else scale
    if "weight_packed" in parts:
        o, i = parts["weight_shape"].tolist()
        if parts["weight_packed"].shape[1] * 32 != -(-i * bits // 32) * 32:
            raise ModelError(f"{layer}: {bits} bits are padded in each word there, which is not read")
        codes, zero = unpack(parts["weight_packed"], bits, i), parts.get("weight_zero_point")
        zero = None if zero is None else unpack(zero.T.contiguous(), bits, o).T.contiguous()
        return Affine.of(codes, scale.expand(o, -1).contiguous(), zero, bits)
    values = parts["weight"]
    scale = scale.expand(len(values), -1).contiguous()
    if weights["type"] == "float" and bits == 8 and scale.shape[1] == 1:
        floats = Floats.of(values.float() * scale.float(), scale, None, KIND)
        return Narrow(floats=floats) if inputs is not None and token(inputs, "float") else floats
    if weights["type"] != "int" or bits != 8 or "weight_zero_point" in parts:
        raise ModelError(f"{layer}: a weight of compressed-tensors that is {weights} is not read")
    affine = Affine.of((values.to(torch.int16) + 128).to(torch.uint8), scale, None, 8)
    if inputs is None or not token(inputs, "int"):
        return affine
    return Dynamic(affine=affine, inputs=int(inputs["num_bits"]))


def token(inputs: Told, kind: str) -> bool:
    """Whether inputs become numbers of a kind as they come, with a scale for each token."""
    each = inputs.get("dynamic") is True and inputs.get("strategy", "token") == "token"
    return each and inputs.get("type") == kind


def scheme_of(layer: str, how: Told) -> Told:
    """The scheme of a layer, by its name, an expression, or the class of linear layers.

    Raises:
        ModelError: the config names none.
    """
    groups: list[Told] = list(how.get("config_groups", {}).values())
    for fits in (
        lambda target: target == layer,
        lambda target: matches(target, layer),
        lambda target: target == "Linear",
    ):
        for group in groups:
            if any(fits(target) for target in group["targets"]):
                return group
    raise ModelError(f"{layer}: no group of compressed-tensors' config names it")


def matches(target: str, layer: str) -> bool:
    """Whether a target is an expression that a name begins with."""
    return target.startswith("re:") and re.match(target[3:], layer) is not None


def nf4(layer: str, parts: Mapping[str, Tensor], how: Told) -> Weight:
    """Of bitsandbytes: a scale for each block of a matrix, which is one long row there.

    Raises:
        ModelError: it is another of its ways to write numbers.
    """
    if NF4 not in parts:
        raise ModelError(f"{layer}: of bitsandbytes nf4 is read; give the original model")
    state = json.loads(bytes(parts[NF4].tolist()))
    (o, i), block = state["shape"], state["blocksize"]
    octets = parts["weight"].flatten()
    codes = torch.stack([octets >> 4, octets & 15], 1).reshape(o, i)
    scale = parts["weight.absmax"]
    if "weight.nested_absmax" in parts:
        nested = parts["weight.nested_quant_map"][scale.long()]
        inner = parts["weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(scale)]
        scale = nested * inner + state["nested_offset"]
    book = parts["weight.quant_map"].float()
    if i % block:
        rows = book[codes.flatten().long()] * scale.repeat_interleave(block)[: o * i]
        return Dense(values=rows.reshape(o, i).half())
    scales = scale.float().reshape(o, i // block)
    return Palette(plane=Plane.of(codes, 4), codebook=Dense(values=book.unsqueeze(0)), rows=o, scale=scales)


NF4 = "weight.quant_state.bitsandbytes__nf4"
METHODS: dict[str, tuple[str, Callable[[str, Mapping[str, Tensor], Told], Weight]]] = {
    "gptq": (".qweight", gptq),
    "awq": (".qweight", awq),
    "compressed-tensors": (".weight_scale", packed),
    "bitsandbytes": (f".{NF4}", nf4),
}
