"""A plane: one small integer per weight, packed as tightly as whole words allow.

Each row of codes is one little-endian stream of bits in 32-bit words (the `pack-quantized` layout of
compressed-tensors where the bits divide 32). Of a pruned weight only the codes that are kept are stored, in row-major
order as a single row, with one bit per weight that says which they are.

Shapes: o outputs, i inputs, w words of a row, m bytes of the bitmask.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int32, Shaped, UInt8
from torch import Tensor

WORD = 32


def pack(codes: UInt8[Tensor, "o i"], bits: int) -> Int32[Tensor, "o w"]:
    """Write each row's codes (each below 2^bits) as a stream of bits, padded to whole words."""
    rows, columns = codes.shape
    count, room = -(-columns // 8), -(-columns * bits // WORD) * WORD // 8
    eights = torch.nn.functional.pad(codes, (0, -columns % 8)).reshape(rows, count, 8)
    numbers = torch.zeros((rows, count, 1), dtype=torch.int64, device=codes.device)
    for place in range(8):
        numbers |= eights[..., place : place + 1].long() << (place * bits)
    octets = numbers.view(torch.uint8)[..., :bits].flatten(1)[:, :room]
    octets = torch.nn.functional.pad(octets, (0, room - octets.shape[1]))
    return octets.flatten().view(torch.int32).reshape(rows, room * 8 // WORD)


def unpack(words: Int32[Tensor, "o w"], bits: int, columns: int) -> UInt8[Tensor, "o i"]:
    """Read `columns` codes of each row back: eight codes lie in `bits` bytes, each in one of them or across two.

    Where each byte holds whole codes, all bytes are read at once: faster, but for single bits, and shorter where it is
    traced.
    """
    rows, count = words.shape[0], -(-columns // 8)
    room = count * bits
    octets = words.flatten().view(torch.uint8).reshape(rows, words.shape[1] * WORD // 8)
    if bits in (2, 4, 8):
        parts = [(octets >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        return torch.stack(parts, -1).flatten(1)[:, :columns].contiguous()
    octets = torch.nn.functional.pad(octets[:, :room], (0, max(room - octets.shape[1], 0))).reshape(rows, count, bits)
    codes = octets.new_empty((rows, count, 8))
    for place in range(8):
        first, shift = divmod(place * bits, 8)
        code = octets[..., first] >> shift
        if shift + bits > 8:
            code |= octets[..., first + 1] << (8 - shift)
        codes[..., place] = code & (2**bits - 1)
    return codes.flatten(1)[:, :columns].contiguous()


def bitmask(kept: Bool[Tensor, "o i"]) -> UInt8[Tensor, " m"]:
    """One bit per weight, row-major, lowest bit first."""
    octets = pack(kept.to(torch.uint8).reshape(1, -1), 1).flatten().view(torch.uint8)
    return octets[: -(-kept.numel() // 8)].clone()


def from_bitmask(mask: UInt8[Tensor, " m"], shape: tuple[int, int]) -> Bool[Tensor, "o i"]:
    """The weights that a bitmask keeps."""
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = ((mask.unsqueeze(-1) >> places) & 1).flatten()
    return bits[: shape[0] * shape[1]].reshape(shape).bool()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plane:
    """Codes of `bits` bits for a matrix of `shape` (o, i); `mask` is None where nothing was pruned."""

    words: Int32[Tensor, "r w"]
    mask: UInt8[Tensor, " m"] | None
    shape: tuple[int, int]
    bits: int

    @classmethod
    def of(cls, codes: UInt8[Tensor, "o i"], bits: int, kept: Bool[Tensor, "o i"] | None = None) -> "Plane":
        """Pack codes; with `kept`, only those."""
        shape = (codes.shape[0], codes.shape[1])
        if kept is None or bool(kept.all()):
            return cls(words=pack(codes, bits), mask=None, shape=shape, bits=bits)
        return cls(words=pack(codes[kept].reshape(1, -1), bits), mask=bitmask(kept), shape=shape, bits=bits)

    def kept(self) -> Bool[Tensor, "o i"] | None:
        """Which weights there are; None means all."""
        return None if self.mask is None else from_bitmask(self.mask, self.shape)

    def codes(self) -> UInt8[Tensor, "o i"]:
        """The codes; 0 where a weight was pruned."""
        kept = self.kept()
        if kept is None:
            return unpack(self.words, self.bits, self.shape[1])
        stored = unpack(self.words, self.bits, self.words.shape[1] * WORD // self.bits)[0]
        return spread(stored, kept)


def spread(stored: Shaped[Tensor, " k"], kept: Bool[Tensor, "o i"]) -> Shaped[Tensor, "o i"]:
    """Put stored values, in row-major order, where they were kept; zero elsewhere.

    Written as a gather so that it traces: its shape does not depend on the data.
    """
    flat = kept.flatten()
    place = (flat.long().cumsum(0) - 1).clamp(min=0, max=max(stored.numel() - 1, 0))
    values = stored[place] if stored.numel() else stored.new_zeros(flat.shape)
    return torch.where(flat, values, values.new_zeros(())).reshape(kept.shape)
