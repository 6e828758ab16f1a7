"""Small floats against the tables of their specifications, written out, and rounding against trying every element."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lissom.errors import RecipeError
from lissom.formats import Dense, Floats, freeze, read_weight, wrap
from lissom.formats.floats import KINDS, held, read
from lissom.statistics import Moments
from lissom.techniques.quantize.floats import floats

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]  # OCP MX 1.0, table 5


def literal(code: int, exponent: int, mantissa: int, bias: int) -> float:
    """A number from its bits, by the formula of the specifications."""
    sign = -1 if code >> (exponent + mantissa) else 1
    e, m = code >> mantissa & (2**exponent - 1), code & (2**mantissa - 1)
    return sign * (2.0 ** (e - bias) * (1 + m / 2**mantissa) if e else 2.0 ** (1 - bias) * m / 2**mantissa)


SHAPES = {"mxfp4": (2, 1, 1), "nvfp4": (2, 1, 1), "mxfp8": (4, 3, 7), "fp8_e4m3": (4, 3, 7), "fp8_e5m2": (5, 2, 15)}


def test_the_sixteen_values() -> None:
    assert KINDS["mxfp4"].values().tolist() == E2M1
    assert torch.equal(torch.signbit(KINDS["nvfp4"].values()), torch.arange(16) >= 8)


@pytest.mark.parametrize("kind", SHAPES)
def test_every_code_is_the_number_of_its_bits(kind: str) -> None:
    values = KINDS[kind].values()
    for code, value in enumerate(values.tolist()):
        if abs(value) <= KINDS[kind].largest:  # the others are infinities or no numbers
            assert value == literal(code, *SHAPES[kind])
    finite = values[values.isfinite()]
    assert KINDS[kind].largest == finite.max() == {4: 6.0, 7: 448.0}.get(values.numel() // 4, float(finite.max()))
    assert finite.numel() == {"fp8_e4m3": 254, "mxfp8": 254, "fp8_e5m2": 248}.get(kind, 16)
    assert torch.equal(KINDS[kind].codes(finite), torch.arange(len(values)).to(torch.uint8)[values.isfinite()])


@pytest.mark.parametrize("kind", SHAPES)
@given(seed=st.integers(0, 2**16), size=st.integers(-12, 12))
@settings(max_examples=25)
def test_rounding_is_to_the_nearest_and_of_two_to_the_even(kind: str, seed: int, size: int) -> None:
    form = KINDS[kind]
    values = form.values()
    x = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 2.0**size
    sorted_values = values[values.isfinite()].sort().values
    ties = (sorted_values[1:] + sorted_values[:-1]) / 2
    for number in [*x.tolist(), *ties[ties != 0][::7].tolist()]:
        code = int(form.codes(torch.tensor([number])))
        distance = (values - number).abs()
        distance[~values.isfinite()] = torch.inf
        assert distance[code] == distance.min()
        if (distance == distance.min()).sum() == 2 and values[code] != 0:
            assert code % 2 == 0


def test_powers_of_two_are_stored_as_their_exponent() -> None:
    form = KINDS["mxfp4"]
    scale = torch.tensor([[1.0, 2.0, 0.25, 2.0**-127, 2.0**127]])
    assert held(form, scale).tolist() == [[127, 128, 125, 0, 254]]
    assert torch.equal(read(held(form, scale), None), scale)


def test_the_specified_scale_of_a_microscaling_group() -> None:
    """OCP MX 1.0, section 6.3, on a group by hand: max 5 = 2^2.3, so 2^(2 - 2) = 1, and 5 is between 4 and 6."""
    w = torch.zeros(1, 32)
    w[0, :5] = torch.tensor([5.0, -0.3, 2.4, 0.25, -7e-3])
    found = floats(Dense(values=w), Moments.blank(32), kind="mxfp4", search=False)
    assert found.scale.tolist() == [[127]]
    assert found.dense()[0, :5].tolist() == [4.0, -0.5, 2.0, 0.0, 0.0]
    octets = found.parts()["_packed"].view(torch.uint8)[0, :3].tolist()
    assert octets == [0x6 | 0x9 << 4, 0x4 | 0x0 << 4, 0x8]


@pytest.mark.parametrize(("kind", "bits"), [("nvfp4", 4.5), ("mxfp4", 4.25), ("mxfp8", 8.25), ("fp8_e4m3", 8.125)])
def test_bytes_are_those_of_the_specification(kind: str, bits: float) -> None:
    found = floats(Dense(values=torch.randn(16, 128)), Moments.blank(128), kind=kind)
    assert found.bits_per_weight == bits + (8 * 4 / (16 * 128) if kind == "nvfp4" else 0)
    assert torch.equal(read_weight(found.spec(), found.parts()).dense(), found.dense())


def weighted(w: Tensor, found: Tensor, x: Tensor) -> Tensor:
    return ((w - found).square() * x.square().mean(0)).sum()


@pytest.mark.parametrize("kind", SHAPES)
def test_the_search_is_no_worse_and_errors_are_as_small_as_the_elements(kind: str) -> None:
    w, x = torch.randn(8, 64) * torch.logspace(-3, 0, 64), torch.randn(50, 64) * torch.logspace(1, -1, 64)
    moments = Moments.zero(64)
    moments.see(x)
    with_search, without = (floats(Dense(values=w), moments, kind=kind, search=s).dense() for s in (True, False))
    assert weighted(w, with_search, x) <= weighted(w, without, x)
    if KINDS[kind].bits == 4:
        assert weighted(w, with_search, x) < 0.95 * weighted(w, without, x)
    relative = (with_search - w).norm() / w.norm()
    assert relative < {4: 0.25, 8: 0.06}[KINDS[kind].bits]


def nvfp4(w: Tensor, *, group: int = 16, top: float = 6, whole: bool = True, exact: bool = False) -> Tensor:
    """The specified NVFP4, a group at a time, from torch's own e4m3 and every element tried."""
    overall = w.abs().max() / (6 * 448) if whole else torch.tensor(1.0)
    done = torch.empty_like(w)
    for row in range(w.shape[0]):
        for first in range(0, w.shape[1], group):
            some = w[row, first : first + group]
            scale = some.abs().max() / top / overall
            scale = (scale if exact else scale.to(torch.float8_e4m3fn).float()) * overall
            nearest = (some.unsqueeze(1) / scale - torch.tensor(E2M1)).abs().argmin(1)
            done[row, first : first + group] = torch.tensor(E2M1)[nearest] * scale
    return done


MUTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "groups of 32": lambda w: nvfp4(w, group=32),
    "another kind": lambda w: floats(Dense(values=w), Moments.blank(64), kind="mxfp4", search=False).dense(),
    "no scale of the whole": lambda w: nvfp4(w, whole=False),
    "scales that are not rounded": lambda w: nvfp4(w, exact=True),
    "four for six": lambda w: nvfp4(w, top=4),
    "negatives lost": lambda w: nvfp4(w.clamp(min=0)),
}


def test_nvfp4_is_its_definition() -> None:
    w = torch.randn(4, 64)
    torch.testing.assert_close(floats(Dense(values=w), Moments.blank(64), search=False).dense(), nvfp4(w))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_definition_catches(mutant: str) -> None:
    w = torch.randn(4, 64)
    assert not torch.allclose(MUTANTS[mutant](w), floats(Dense(values=w), Moments.blank(64), search=False).dense())


@pytest.mark.parametrize("kind", SHAPES)
def test_zeros_and_extremes_stay_finite(kind: str) -> None:
    w = torch.zeros(4, 64)
    assert torch.equal(floats(Dense(values=w), Moments.blank(64), kind=kind).dense(), w)
    w[1, 3], w[2, 5] = 3e4, -1e-6
    found = floats(Dense(values=w), Moments.blank(64), kind=kind).dense()
    assert found.isfinite().all()
    assert abs(float(found[1, 3]) - 3e4) <= 6e3


@pytest.mark.parametrize("kind", SHAPES)
def test_a_layer_trains_freezes_and_exports(kind: str) -> None:
    linear, x = nn.Linear(64, 8), torch.randn(5, 64)
    weight = floats(Dense(values=linear.weight.detach()), Moments.blank(64), kind=kind)
    model = nn.Sequential(wrap(linear, weight, trainable=True))
    held_weight = model[0].matrix
    held_weight.near(linear.weight.detach())
    assert torch.equal(held_weight(), weight.dense())
    assert not torch.equal(held_weight.latent, weight.dense())
    (model(x) - 1).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    assert isinstance(held_weight.weight(), Floats)
    trained = model(x).detach()
    torch.testing.assert_close(freeze(model)(x), trained)
    exported = torch.export.export(model.eval(), (x,)).module()
    assert torch.equal(exported(x), model(x))


def test_kinds_that_are_not_there_and_groups_that_do_not_divide_are_named() -> None:
    with pytest.raises(RecipeError, match=r"kind='fp4' is not possible; choose fp8_e4m3, .*nvfp4"):
        floats(Dense(values=torch.randn(2, 32)), Moments.blank(32), kind="fp4")
    with pytest.raises(RecipeError, match="group=32 does not divide 48 inputs"):
        floats(Dense(values=torch.randn(2, 48)), Moments.blank(48), kind="mxfp4")
