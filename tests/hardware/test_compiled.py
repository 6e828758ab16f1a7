"""Every kernel really becomes code for GPUs, without one: for Ampere and for Hopper, with nothing spilled."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs triton, which PyTorch for CUDA brings along")

SCRIPT = """
import dataclasses, json
from lissom.hardware.compiled import compiled
print(json.dumps([[dataclasses.asdict(one) for one in compiled(capability, every=False)] for capability in (80, 90)]))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """For Ampere and for Hopper; in a process of its own, for in this one kernels are interpreted."""
    how = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "TRITON_INTERPRET": "0"}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=os.environ | how)
    assert ran.returncode == 0, ran.stderr
    made: list[list[dict[str, Any]]] = json.loads(ran.stdout)
    return made


def test_every_form_is_compiled(found: list[list[dict[str, Any]]]) -> None:
    ampere, hopper = ({one["form"] for one in made} for made in found)
    assert hopper - ampere == {"float8, inputs too"}
    assert {"int4 g128", "int3 g128", "16 entries", "float8", "int8, inputs int8"} <= ampere


def test_products_are_on_units_for_them_and_nothing_is_spilled(found: list[list[dict[str, Any]]]) -> None:
    for made in found:
        for one in made:
            assert one["units"] in ("wgmma", "mma.sync"), one
            assert one["spilled_bytes"] == 0, one
            assert 0 < one["registers"] <= 255
            assert 0 < one["shared_bytes"] <= 160 * 1024  # less than a multiprocessor of an A100 has
