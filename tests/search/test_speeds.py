"""The speed of each form: measured where the target is here, else costed, and refused where it does not run."""

import pytest

from lissom.estimate import Estimate
from lissom.hardware import target_named
from lissom.search.forms import ORIGINAL, SAFE
from lissom.search.speeds import speeds


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


def test_of_a_circuit_the_area_is_told() -> None:
    found = {form.form: form for form in speeds(target_named("fpga:xc7z020clg400-1"), size=64)}
    areas = [found[form].area or 0 for form in (ORIGINAL, SAFE, "4 bits a row", "binary")]
    assert areas == sorted(areas, reverse=True)
    assert found["2 bits"].refused
    assert "to compare with" in found[ORIGINAL].kernel
    assert found[SAFE].ms == pytest.approx(5e-6 * (1 + 3 + 2))  # one place, three levels of sums, and two more
