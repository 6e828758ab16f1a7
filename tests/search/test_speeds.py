"""The speed of each form: measured where the target is here, else costed, and refused where it does not run."""

import pytest

from lissom.estimate import Estimate
from lissom.hardware import target_named
from lissom.search.forms import ORIGINAL, SAFE
from lissom.search.speeds import speeds

COSTED = ("cuda:h200", "tpu:v5e", "fpga:xc7z020clg400-1")


def test_here_it_is_measured() -> None:
    found = {form.form: form for form in speeds(target_named("cpu"), size=64, rounds=6)}
    assert isinstance(found[ORIGINAL].latency, Estimate)
    assert all(isinstance(form.latency, Estimate) and form.latency.value > 0 for form in found.values())
    assert (found[ORIGINAL].kernel, found[SAFE].kernel) == ("PyTorch", "panels")
    assert found[ORIGINAL].bits == 32


def test_elsewhere_it_is_costed_or_refused() -> None:
    found = {form.form: form for form in speeds(target_named("tpu:v5e"), size=64)}
    assert isinstance(found[SAFE].latency, float)
    assert found[SAFE].latency < found[ORIGINAL].latency  # type: ignore[operator]
    assert found["shared 4 bits"].latency is None
    assert "would become 8 bits in groups of 32" in found["shared 4 bits"].refused


def test_the_bits_that_are_shown_are_those_that_are_costed() -> None:
    found = {name: {form.form: form.bits for form in speeds(target_named(name), size=64)} for name in COSTED}
    assert [bits[ORIGINAL] for bits in found.values()] == [16, 16, 16]
    assert 4 < found["tpu:v5e"]["3 bits"] == found["tpu:v5e"]["4 bits"] < 5  # integers of 4 bits hold both
    assert 3 < found["cuda:h200"]["3 bits"] < 4 < found["cuda:h200"]["4 bits"] < 5
    assert found["tpu:v5e"]["shared 4 bits"] == found["cuda:h200"]["shared 4 bits"]  # it is refused there


def test_of_a_circuit_the_area_is_told() -> None:
    found = {form.form: form for form in speeds(target_named("fpga:xc7z020clg400-1"), size=64)}
    areas = [found[form].area or 0 for form in (ORIGINAL, SAFE, "4 bits a row", "binary")]
    assert areas == sorted(areas, reverse=True)
    assert found["2 bits"].refused
    assert "to compare with" in found[ORIGINAL].kernel
    assert found[SAFE].ms == pytest.approx(5e-6 * (1 + 3 + 2))  # one place, three levels of sums, and two more
