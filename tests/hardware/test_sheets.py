"""The data sheets: a type without a rate of its own is multiplied in a wider one."""

import pytest

from lissom.hardware.sheets import SHEETS
from lissom.hardware.ways import CUDA, TPU


def test_what_has_no_rate_of_its_own_is_multiplied_in_bf16():
    assert SHEETS["h200"].rate("fp8") == pytest.approx(2 * SHEETS["h200"].rate("bf16"), rel=1e-3)
    assert SHEETS["a100"].rate("fp8") == SHEETS["a100"].rate("bf16") == 312e12
    assert SHEETS["tpu-v5e"].rate("fp32") == 197e12


def test_every_device_that_can_be_named_has_one():
    assert set(SHEETS) == {*CUDA.devices, *(f"tpu-{device}" for device in TPU.devices)}
