"""The roofline, by hand."""

import pytest

from lissom.hardware.roofline import LAUNCH_S, assumed, seconds
from lissom.hardware.sheets import Sheet

SLOW = Sheet(name="slow", rates={"bf16": 1e12, "int8": 2e12}, memory=1e9, read=1e9)


def test_what_takes_longer_hides_the_other():
    assert seconds(SLOW, "bf16", 0, 0) == LAUNCH_S == 5e-6
    assert seconds(SLOW, "bf16", 4e11, 7e8) == pytest.approx(1.0 + 5e-6)  # 40 % of 1 TFLOPS, and 70 % of 1 GB/s
    assert seconds(SLOW, "int8", 4e11, 7e7) == pytest.approx(0.5 + 5e-6)
    assert seconds(SLOW, "int8", 4e11, 1.4e9) == pytest.approx(2.0 + 5e-6)


def test_what_is_assumed_is_said():
    assert assumed() == "40% of the published rate of products, 70% of that of memory, 5 µs for each call of a layer"
