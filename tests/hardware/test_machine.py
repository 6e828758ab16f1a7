import pytest
import torch

from lissom.hardware import describe, machine

XEON = """processor : 0
model name : Some Xeon
flags : fpu sse avx2 avx512f avx512_vnni amx_tile

processor : 1
model name : Another
"""


def test_this_machine_is_described():
    found = describe()
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_bytes > 2**28
    assert found.torch == torch.__version__
    assert (found.gpu is None) == (not torch.cuda.is_available())
    assert all(isinstance(value, str) and value for value in found.as_dict().values())


def test_linux_is_read(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(XEON)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    found = describe()
    assert found.cpu == "Some Xeon"
    assert found.isa == ("avx2", "avx512", "vnni", "amx")


def test_arm_under_linux_is_read(monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    assert machine.isa({"Features": "fp asimd asimddp sve i8mm bf16"}) == ("bf16", "neon", "dotprod", "i8mm", "sve")


def test_macos_is_read(tmp_path, monkeypatch):
    said = {
        "machdep.cpu.brand_string": {"machdep.cpu.brand_string": "Apple M1"},
        "hw.optional": machine.pairs(
            "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.avx2_0: 0\n"
        ),
    }
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(machine, "sysctl", said.__getitem__)
    found = describe()
    assert found.cpu == "Apple M1"
    assert found.isa == ("neon", "dotprod")


@pytest.mark.parametrize(("limit", "expected"), [("268435456\n", 2**28), ("max\n", None), ("9" * 20, None)])
def test_a_containers_memory_limit_counts(tmp_path, monkeypatch, limit, expected):
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "none")
    installed = machine.memory_bytes()
    (tmp_path / "max").write_text(limit)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "max")
    assert machine.memory_bytes() == (expected or installed)
