"""Entropy coding: tensors of codes, written with fewer bits for the values that are frequent.

Han, Mao, Dally, Deep Compression, ICLR 2016, arXiv:1510.00149, section 4. The coder is Deflate (RFC 1951, zlib), with
its Huffman codes alone or after matching strings, whichever is shorter. A Huffman code over bytes sees a code of b bits
only where it does not straddle bytes, so the stream is first regrouped into units of the bits that suit it: of 3-bit
codes two make a byte. A tensor that gets no smaller is left as it is.

Of a coded tensor `T` the file holds bytes under the same name; its header says `T`'s type, shape and unit under
`entropy_coding`.
"""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from lissom.errors import ArtifactError, RecipeError, reason

CODERS = ("deflate",)
HEADER = "entropy_coding"
UNITS = (8, 7, 6, 5)  # bits of a code, or of two 3-bit ones; 1, 2 and 4 fill bytes
LOT = 1024 * math.lcm(8, *UNITS)  # units at a time, which end together with units of any other size
CODED = {str(kind): kind for kind in (torch.int32, torch.uint8, torch.int8, torch.float16, torch.bfloat16)}


def check(coding: str | None) -> None:
    """See that a coder of that name exists.

    Raises:
        RecipeError: there is none.
    """
    if coding is not None and coding not in CODERS:
        raise RecipeError(f"entropy_coding={coding!r} is unknown; choose {' or '.join(CODERS)}, or none")


def encode(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, coded where that makes them smaller, and what the header must say of those."""
    found, notes = dict(tensors), {}
    for name, tensor in tensors.items():
        if str(tensor.dtype) not in CODED or not tensor.numel():
            continue
        octets = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        units = UNITS if tensor.dtype == torch.int32 else (8,)
        unit, content = min(((unit, deflate(regroup(octets, unit, 8))) for unit in units), key=lambda lot: len(lot[1]))
        if len(content) < octets.numel():
            found[name] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            notes[name] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "unit": unit}
    return found, {HEADER: json.dumps({"coder": CODERS[0], "tensors": notes})} if notes else {}


def decode(tensors: Mapping[str, Tensor], header: Mapping[str, str], whose: str) -> dict[str, Tensor]:
    """The tensors as they were before `encode`; `whose` they are, an error says.

    Raises:
        ArtifactError: the header or a tensor is damaged, or of a coder that this lissom does not know.
    """
    found = dict(tensors)
    try:
        said = json.loads(header.get(HEADER, '{"coder": "deflate", "tensors": {}}'))
        if said["coder"] not in CODERS:
            raise ArtifactError(f"{whose} is coded by {said['coder']!r}, unknown to this lissom; use a later one")
        for name, note in said["tensors"].items():
            found[name] = decoded(tensors[name], note)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, zlib.error) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{whose} cannot be decoded ({reason(error)}); copy the folder again") from None
    return found


def decoded(tensor: UInt8[Tensor, " n"], note: Mapping[str, Any]) -> Tensor:
    """One tensor as it was."""
    kind, unit = CODED[note["dtype"]], note["unit"]
    if unit not in UNITS:
        raise ValueError(f"unit {unit} is none of {UNITS}")
    size = math.prod(note["shape"]) * kind.itemsize
    inflater = zlib.decompressobj()
    limit = -(-size * 8 // unit)  # no more than it should be, whatever the bytes say
    content = inflater.decompress(tensor.numpy().tobytes(), limit + 1)
    if len(content) != limit or not inflater.eof:
        raise ValueError(f"{len(content)} units where {limit} were written")
    octets = regroup(torch.frombuffer(bytearray(content), dtype=torch.uint8), 8, unit)[:size]
    return octets.clone().view(kind).reshape(note["shape"])


def deflate(octets: UInt8[Tensor, " n"]) -> bytes:
    """The shorter of Huffman codes alone and Deflate."""
    content = octets.numpy().tobytes()
    lots = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        coder = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
        lots.append(coder.compress(content) + coder.flush())
    return min(lots, key=len)


def regroup(octets: UInt8[Tensor, " n"], to: int, of: int) -> UInt8[Tensor, " k"]:
    """A stream of units of `of` bits, one a byte, as units of `to` bits, the last filled up with zeros."""
    if to == of:
        return octets
    return torch.cat([regrouped(lot, to, of) for lot in octets.split(LOT)])


def regrouped(octets: UInt8[Tensor, " n"], to: int, of: int) -> UInt8[Tensor, " k"]:
    """`regroup` in one go; it takes eight times the memory."""
    bits = (octets.unsqueeze(1) >> torch.arange(of, dtype=torch.uint8)).bitwise_and_(1).flatten()
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % to)).reshape(-1, to)
    return (bits << torch.arange(to, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
