"""Codes in, the same codes out, in as few bytes as promised."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissom.formats.plane import Plane, bitmask, from_bitmask, pack, spread, unpack

BITS = st.integers(1, 8)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 40))
SEEDS = st.integers(0, 2**16)
DENSITIES = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


def codes_of(shape: tuple[int, int], bits: int, seed: int) -> Tensor:
    return torch.randint(2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def kept_of(shape: tuple[int, int], density: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < density


def literal_words(row: list[int], bits: int) -> list[int]:
    """One long number with the first code in its lowest bits, cut into words of 32."""
    stream = sum(code << (bits * place) for place, code in enumerate(row))
    return [stream >> (32 * word) & 0xFFFFFFFF for word in range(-(-len(row) * bits // 32))]


@given(bits=BITS, shape=SHAPES, seed=SEEDS)
@settings(max_examples=60)
def test_codes_are_one_stream_of_bits(bits: int, shape: tuple[int, int], seed: int) -> None:
    codes = codes_of(shape, bits, seed)
    words = pack(codes, bits)
    assert [[word & 0xFFFFFFFF for word in row] for row in words.tolist()] == [
        literal_words(row, bits) for row in codes.tolist()
    ]
    assert torch.equal(unpack(words, bits, shape[1]), codes)


@given(shape=SHAPES, density=DENSITIES, seed=SEEDS)
@settings(max_examples=40)
def test_a_bitmask_has_a_bit_for_each_weight(shape: tuple[int, int], density: float, seed: int) -> None:
    kept = kept_of(shape, density, seed)
    mask = bitmask(kept)
    assert mask.numel() == -(-kept.numel() // 8)
    assert [mask.tolist()[n // 8] >> n % 8 & 1 for n in range(kept.numel())] == kept.flatten().int().tolist()
    assert torch.equal(from_bitmask(mask, shape), kept)


@given(bits=BITS, shape=SHAPES, density=DENSITIES, seed=SEEDS)
@settings(max_examples=80)
def test_a_plane_gives_back_what_was_kept(bits: int, shape: tuple[int, int], density: float, seed: int) -> None:
    codes, kept = codes_of(shape, bits, seed), kept_of(shape, density, seed)
    plane = Plane.of(codes, bits, kept)
    assert torch.equal(plane.codes(), codes * kept)
    there = plane.kept()
    assert kept.all() if there is None else torch.equal(there, kept)
    stored = kept.sum().item() if plane.mask is not None else None
    if stored is not None:  # only the codes that are kept are stored, in whole words
        assert plane.words.shape == (1, -(-int(stored) * bits // 32))


def test_a_plane_of_which_nothing_is_kept_holds_no_codes() -> None:
    plane = Plane.of(torch.full((3, 5), 7, dtype=torch.uint8), 3, torch.zeros(3, 5, dtype=torch.bool))
    assert plane.words.numel() == 0
    assert torch.equal(plane.codes(), torch.zeros(3, 5, dtype=torch.uint8))


@given(shape=SHAPES, density=DENSITIES, seed=SEEDS)
@settings(max_examples=40)
def test_spread_is_masked_assignment(shape: tuple[int, int], density: float, seed: int) -> None:
    kept = kept_of(shape, density, seed)
    stored = torch.randn(int(kept.sum()), generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros(shape)
    expected[kept] = stored
    assert torch.equal(spread(stored, kept), expected)
