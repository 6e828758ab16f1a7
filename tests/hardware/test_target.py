import pytest
import torch

from lissom.errors import LissomError
from lissom.hardware import check_target, target_named, targets, targets_named
from lissom.hardware.target import nameable


def test_the_cpu_is_always_a_target():
    assert targets()[0] == "cpu"
    assert check_target("cpu").type == "cpu"
    found = target_named("cpu")
    assert (found.measured, found.place, str(found)) == (True, torch.device("cpu"), "cpu")


@pytest.mark.parametrize("name", ["tpu", "CPU", ""])
def test_other_targets_are_refused(name):
    with pytest.raises(LissomError, match="possible here: cpu"):
        check_target(name)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def an_h200(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")


def test_what_is_not_here_is_named_with_its_device_and_costed(no_gpu):
    found = target_named("cuda:h200")
    assert (found.kind, found.device, found.measured) == ("cuda", "h200", False)
    assert found.how == "costed by the data sheet"
    assert (found.place.type, found.folder) == ("cpu", "cuda-h200")
    assert not any(target_named(name).measured for name in nameable() if name != "cpu")


def test_what_is_here_is_measured_also_by_its_name(an_h200):
    for name in ("cuda", "cuda:h200"):
        found = target_named(name)
        assert found.measured
        assert found.place == torch.device("cuda")
    assert not target_named("cuda:h100").measured
    assert target_named("cuda:h100").place.type == "cpu"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "'gpu' is none of cpu, cuda:h100"),
        ("tpu:v5", r"nothing is known of 'v5'; known are v5e, v5p, v6e; did you mean 'v5"),
        ("cpu:epyc", "it has no devices; write cpu"),
        ("cuda", "'cuda' is not on this machine; name the device to cost it for: cuda:h100, cuda:h200"),
        ("fpga", "name the device to cost it for: fpga:xcu250"),
        ("cuda:h2000", "did you mean 'h200'"),
    ],
)
def test_what_is_none_is_said(no_gpu, name, message):
    with pytest.raises(LissomError, match=message):
        target_named(name)


def test_several_are_named_once_each(no_gpu):
    assert [str(one) for one in targets_named(["tpu:v5e", "cpu"])] == ["tpu:v5e", "cpu"]
    assert [str(one) for one in targets_named("cpu")] == ["cpu"]
    with pytest.raises(LissomError, match="cpu is named twice"):
        targets_named(["cpu", "cpu"])
    with pytest.raises(LissomError, match="none is named"):
        targets_named([])


def test_who_has_the_compiler_of_a_target_is_told_that_it_is_used(no_gpu, monkeypatch):
    assert not target_named("tpu:v5e").compiled
    monkeypatch.setattr("lissom.hardware.ways.find_spec", lambda package: package)
    found = target_named("tpu:v5e")
    assert found.compiled
    assert found.how == "costed by the data sheet, of what its compiler makes ahead of time"
    assert not target_named("cuda:h100").compiled
