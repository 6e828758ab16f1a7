"""Fixed point against Python's own exact numbers."""

from fractions import Fraction

import numpy as np
import pytest

from lissom.export.fpga.fixed import Fixed, Flat, Largest, Network, Product, fitted, shifted, summed


@pytest.mark.parametrize("places", [-3, 0, 1, 2, 5])
def test_halves_go_to_the_even_code(places: int) -> None:
    codes = np.arange(-200, 200)
    wanted = [round(Fraction(int(code)) / Fraction(2) ** places) for code in codes]
    assert shifted(codes, places).tolist() == wanted


@pytest.mark.parametrize("largest", [0.0, 0.3, 0.5, 0.9999, 1.0, 7.0, 8.0, 1000.0])
@pytest.mark.parametrize("signed", [True, False])
def test_a_type_holds_what_it_was_made_for_and_is_the_finest_that_does(largest: float, signed: bool) -> None:
    kind = Fixed.around(largest, 8, signed)
    assert abs(kind.codes(np.array([largest]))[0] * kind.step - largest) <= kind.step / 2
    assert largest == 0 or round(largest * 2.0 ** (kind.point + 1)) > kind.high
    low, high = kind.codes(np.array([-1e6, 1e6]))
    assert (low, high) == (kind.low, kind.high) == ((-128, 127) if signed else (0, 255))


def test_types_are_spelled_as_in_cpp() -> None:
    kinds = [Fixed(bits=8, point=3), Fixed(bits=8, point=10, signed=False)]
    assert [str(kind) for kind in kinds] == ["ap_fixed<8,5>", "ap_ufixed<8,-2>"]


def test_a_convolution_sums_what_lies_under_its_windows() -> None:
    rng = np.random.default_rng(0)
    x, codes = rng.integers(-9, 9, (2, 3, 6, 5)), rng.integers(-9, 9, (4, 3, 3, 2))
    found = summed(x, codes, (2, 1), (1, 0))
    framed = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    assert found.shape == (2, 4, 3, 4)
    for n, o, h, w in np.ndindex(*found.shape):
        assert found[n, o, h, w] == (framed[n, :, 2 * h : 2 * h + 3, w : w + 2] * codes[o]).sum()


@pytest.mark.parametrize("rectified", [True, False])
def test_a_layer_rounds_where_it_says(rectified: bool) -> None:
    rng = np.random.default_rng(1)
    kind = Fixed(bits=8, point=4)
    x, codes = rng.integers(-128, 128, (40, 30)), rng.integers(-7, 8, (5, 30))
    scale, bias = rng.uniform(-0.1, 0.1, 5), rng.normal(size=5)
    layer = fitted("a", codes, scale, bias, rectified=rectified, bits=8, seen=x, kind=kind)
    found = layer.run(x, kind.point)
    for n, o in np.ndindex(*found.shape):
        a = Fraction(int(codes[o] @ x[n]), 2**kind.point)
        k = rounded(a, layer.sums)
        factor = Fraction(int(layer.factor[o])) / Fraction(2) ** layer.factor_type.point
        y = k * factor + Fraction(int(layer.bias[o])) / Fraction(2) ** layer.point
        assert (
            rounded(max(y, Fraction(0)) if rectified else y, layer.out) == found[n, o] / Fraction(2) ** layer.out.point
        )
    exact = x / 16 @ (codes * scale[:, None]).T + bias
    exact = np.maximum(exact, 0) if rectified else exact
    assert np.abs(found * layer.out.step - exact).max() < 2 * layer.out.step


def rounded(number: Fraction, kind: Fixed) -> Fraction:
    """A number of a type, the nearest."""
    code = round(number * Fraction(2) ** kind.point)
    return min(max(code, kind.low), kind.high) / Fraction(2) ** kind.point


def test_a_network_is_its_stages_one_after_another() -> None:
    rng, kind = np.random.default_rng(2), Fixed(bits=8, point=0)
    out = Fixed(bits=8, point=-1)
    half = Product(
        name="c",
        codes=np.ones((1, 1, 1, 1), np.int64),
        sums=Fixed(bits=13, point=0),
        factor=np.array([1]),
        factor_type=Fixed(bits=12, point=0),
        bias=np.array([3]),
        rectified=False,
        out=out,
    )
    stages = (half, Largest(name="m", size=(2, 2), stride=(2, 2), out=out), Flat(name="f", out=out))
    network = Network(shape=(1, 4, 4), entry=kind, stages=stages)
    x = rng.integers(-100, 100, (3, 1, 4, 4)).astype(float)
    wanted = (np.rint((x + 3) / 2) * 2).reshape(3, 2, 2, 2, 2).max((2, 4)).reshape(3, -1)
    assert np.array_equal(network.run(x), wanted)
    assert network.maps() == [((1, 4, 4), (1, 4, 4)), ((1, 4, 4), (1, 2, 2)), ((1, 2, 2), (4,))]
