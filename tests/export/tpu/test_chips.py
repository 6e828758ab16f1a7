"""TPUs' own compiler, of chips that are not there."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from lissom.errors import RecipeError
from lissom.export.tpu.chips import KINDS, TOPOLOGIES, arguments_in, check, compiled, devices_of, exchanges_in, spec_of
from lissom.export.tpu.folder import shares_of
from lissom.export.tpu.lower import lowered
from lissom.export.tpu.plain import make_plain

THERE = all(map(find_spec, ("jax", "torchax", "libtpu")))
compiler = pytest.mark.skipif(not THERE, reason="needs jax, torchax and libtpu")

PROGRAM = """HloModule jit_function

%fused (param_0: s4[8,2]) -> bf16[8,2] {
  %param_0 = s4[8,2]{1,0:T(8,128)} parameter(0)
}

ENTRY %main (p: s4[8,2], q: bf16[3]) -> f32[] {
  %p = s4[8,2]{1,0:T(8,128)E(4)} parameter(0), sharding={replicated}
  %q = bf16[3]{0} parameter(1)
  %n = s32[] parameter(2)
  %r = f32[8]{0} all-reduce(%x), channel_id=1
  %s = f32[8]{0} all-gather-start(%x), channel_id=1
}
"""


def test_a_program_is_read() -> None:
    assert arguments_in(PROGRAM) == {"s4": 8, "bf16": 6, "s32": 4}
    assert exchanges_in(PROGRAM) == {"all-reduce": 1, "all-gather": 1}


def test_a_tensor_is_shared_out_where_the_chips_divide_it() -> None:
    assert spec_of((16, 32), (1,), 8) == (None, "tensor")
    assert spec_of((3, 5, 32), (0, 2), 8) == (None, None, "tensor")
    assert spec_of((16, 3), (1,), 8) == spec_of((16, 3), (), 8) == ()


def test_a_topology_that_does_not_exist_is_named() -> None:
    with pytest.raises(RecipeError, match=r"'v5e-6' is unknown; there are v5e-1, .*; did you mean"):
        check("v5e-6")


@compiler
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_compiler_knows_every_topology(topology: str) -> None:
    kind, count = topology.split("-")
    assert len(devices_of(topology)) == int(count) // (2 if kind == "v5p" else 1)
    assert KINDS[kind].memory >= 16 * 2**30


@compiler
@pytest.mark.parametrize(("bits", "kind"), [(8, "s8"), (4, "s4")])
@pytest.mark.parametrize("topology", ["v5e-1", "v6e-8"])
def test_integers_are_integers_on_the_chip(bits: int, kind: str, topology: str) -> None:
    from lissom import compress_model

    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
    steps = [{"technique": "rtn", "bits": bits, "group": 128}]
    small = compress_model(model, torch.randn(8, 512), steps=steps)
    plain = make_plain(small, torch.float32)
    found = compiled(lowered(plain, {"input": torch.randn(8, 512)}), shares_of(plain, None), topology)
    assert found.arguments[kind] == 2 * 512 * 1024 * bits // 8 // found.chips
    assert found.temporary_bytes < 4 * 512 * 1024 // found.chips  # not one matrix is decoded as a whole
    assert found.fits
    assert (found.chips == 1) == (not found.exchanges)
    assert found.flops > 0


SHARED_OUT = """
import torch
from lissom import compress_model
from lissom.export.chips import shared_out
from lissom.export.lower import jax_here, lowered
from lissom.export.plain import make_plain
from lissom.export.tpu import shares_of

model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32))
steps = [{"layers": "0", "technique": "rtn", "bits": 4, "group": 16, "symmetric": False}]
steps.append({"layers": "2", "technique": "rtn", "bits": 8})
x = torch.randn(8, 64)
small = compress_model(model, x, steps=steps)
expected = small(x)
plain = make_plain(small, torch.float32)
low = lowered(plain, {"input": x})
jax = jax_here()
function, places = shared_out(low, shares_of(plain, None), jax.devices())
given = [{n: jax.device_put(a, to[n]) for n, a in part.items()} for part, to in zip(low.arrays(), places)]
parts = given[0]["0.matrix.int4"].addressable_shards
assert [part.data.shape for part in parts] == [(4, 32, 16)] * 4
assert torch.allclose(torch.tensor(jax.device_get(function(*given)[0])), expected, atol=1e-5)
"""


@pytest.mark.skipif(not (find_spec("jax") and find_spec("torchax")), reason="needs jax and torchax")
def test_what_is_shared_out_says_the_same() -> None:
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}  # which JAX reads but once
    subprocess.run([sys.executable, "-c", SHARED_OUT], check=True, env=env)
