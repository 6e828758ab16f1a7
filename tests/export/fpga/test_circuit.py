"""Counts of a circuit, against counting by hand."""

from itertools import product

import numpy as np

from lissom.export.fpga.circuit import bits_of, digits, estimate, sums_type, table, uncompressed
from lissom.export.fpga.fixed import Fixed, Largest, Network, fitted


def test_digits_are_those_of_the_shortest_form() -> None:
    least = dict.fromkeys(range(-40, 41), 9)
    for signs in product((-1, 0, 1), repeat=7):
        number = sum(sign << place for place, sign in enumerate(signs))
        if number in least:
            least[number] = min(least[number], sum(sign != 0 for sign in signs))
    assert digits(np.array(list(least))).tolist() == list(least.values())


def test_bits_of_codes() -> None:
    given = {(-1, 1): 1, (-1, 0, 1): 2, (-2, 1): 2, (-8, 7): 4, (0, 8): 5, (-128, 127): 8, (-129,): 9}
    assert {codes: bits_of(np.array(codes)) for codes in given} == given


def layer(codes: np.ndarray, kind: Fixed) -> object:
    """A layer of codes that saw something."""
    seen = np.random.default_rng(0).integers(0, 2**kind.bits - 1, (20, codes.shape[1]))
    ones = np.ones(len(codes))
    return fitted("a", codes, ones, ones, rectified=True, bits=8, seen=seen, kind=kind)


def test_sums_fit_whatever_comes_in() -> None:
    kind = Fixed(bits=4, point=1, signed=False)
    codes = np.array([[3, -5, 0], [1, 1, 1]])
    most = 8 * kind.high
    assert sums_type(codes, kind) == Fixed(bits=most.bit_length() + 1, point=1)


def test_zeros_and_powers_of_two_are_no_multipliers() -> None:
    kind = Fixed(bits=8, point=0, signed=False)
    found = estimate(layer(np.array([[0, 1, -4, 3], [0, 0, 7, 5]]), kind), kind, (2,), 1)
    assert (found.weights, found.multipliers) == (5, 3)
    assert found.adders == (2 + 1) + 3  # trees of three and two, and 3 = 4 - 1, 7 = 8 - 1, 5 = 4 + 1
    assert (found.bram, found.dsp, found.weight_bits) == (0, 2, 5 * bits_of(np.array([-4, 7])))


def test_what_is_reused_lies_in_memory_and_takes_longer() -> None:
    kind = Fixed(bits=8, point=0, signed=False)
    stage = layer(np.full((6, 8), 3), kind)
    once, often = (estimate(stage, kind, (6,), reuse) for reuse in (1, 4))
    assert (often.multipliers, often.bram) == (12, 1)
    assert often.cycles == once.cycles + 3


def test_uncompressed_has_a_dsp_for_each_weight() -> None:
    kind = Fixed(bits=8, point=0, signed=False)
    found = uncompressed(layer(np.array([[0, 1, -4], [0, 0, 7]]), kind), (2,), 1)
    assert (found.weights, found.dsp, found.weight_bits, found.adders) == (6, 6, 96, 4)


def test_totals_are_sums_of_rows() -> None:
    kind = Fixed(bits=8, point=0, signed=False)
    stages = (layer(np.array([[3, 1]]), kind), layer(np.array([[5]]), kind))
    told = table(Network(shape=(2,), entry=kind, stages=stages), {"a": "int4"}, {})
    assert told["total"]["lut"] == sum(row["lut"] for row in told["layers"])
    assert [row["form"] for row in told["layers"]] == ["int4", "int4"]
    pool = Largest(name="m", size=(2, 2), stride=(2, 2), out=kind)
    assert estimate(pool, kind, (3, 2, 2), 1).adders == 3 * 4 * 3
