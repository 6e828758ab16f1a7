import pytest
import torch

from lissom.estimate import Estimate
from lissom.hardware import limits
from lissom.hardware.limits import product, reading, threads

CPU = torch.device("cpu")


def test_every_rate_is_measured():
    threads_before = torch.get_num_threads()
    found = limits(0.0, size=64, read_bytes=2**20).as_dict()
    assert list(found) == ["read_one", "read_all", "int8", "bf16", "fp32"]
    for name, rate in found.items():
        assert isinstance(rate, Estimate)
        assert 0 < rate.low <= rate.value <= rate.high
        assert rate.n >= 6
        assert rate.unit == ("GB/s" if name.startswith("read") else "GOP/s")
    assert torch.get_num_threads() == threads_before


def test_the_work_is_what_is_counted():
    read, nbytes = reading(4096, CPU)
    assert (read().item(), nbytes) == (1024, 4096)
    for kind, result in [(torch.int8, torch.int32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)]:
        multiply, operations = product(kind, 32, CPU)
        assert multiply().dtype == result
        assert operations == 2 * 32**3


def test_threads_come_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="boom"), threads(before + 1):
        raise RuntimeError("boom" if torch.get_num_threads() == before + 1 else "threads were not set")
    assert torch.get_num_threads() == before
