"""Every kernel really becomes code for GPUs, without one: for Ampere and for Hopper, with nothing spilled."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", "3.7", reason="needs triton, which PyTorch for CUDA brings along")

SCRIPT = """
import dataclasses, json
from lissom.hardware.compiled import AMPERE, HOPPER, compiled
some = {AMPERE: ["int4, zeros", "float8, inputs too"]}
some[HOPPER] = ["16 entries", "int8, inputs int8", "float8, inputs too"]
made = [[dataclasses.asdict(one) for one in compiled(gpu, forms=forms, every=False)] for gpu, forms in some.items()]
print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """For Ampere and for Hopper; in a process of its own, for in this one kernels are interpreted."""
    how = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "TRITON_INTERPRET": "0"}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=os.environ | how)
    assert ran.returncode == 0, ran.stderr
    made: list[list[dict[str, Any]]] = json.loads(ran.stdout)
    return made


def test_every_form_is_compiled_where_there_are_units_for_it(found: list[list[dict[str, Any]]]) -> None:
    ampere, hopper = ([one["form"] for one in made] for made in found)
    assert ampere == ["int4, zeros"]
    assert hopper == ["16 entries", "int8, inputs int8", "float8, inputs too"]
    assert [one["kernel"] for one in found[1]] == ["multiply", "multiply_whole", "multiply_narrow"]


def test_products_are_on_units_for_them_and_nothing_is_spilled(found: list[list[dict[str, Any]]]) -> None:
    for made in found:
        for one in made:
            assert one["units"] in ("wgmma", "mma.sync"), one
            assert one["spilled_bytes"] == 0, one
            assert 0 < one["registers"] <= 255
            assert 0 < one["shared_bytes"] <= 160 * 1024  # less than a multiprocessor of an A100 has
