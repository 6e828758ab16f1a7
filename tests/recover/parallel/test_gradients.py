"""The hook: real processes learn together over gloo, whatever their gradients travel in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lissom.errors import ModelError, RecipeError
from lissom.recover.parallel.codes import Integers
from lissom.recover.parallel.gradients import CODES, KINDS, Hook, code_of, compress_gradients
from lissom.recover.parallel.mean import Mean
from lissom.recover.parallel.wire import Meter, Wire

LEARNING, STEPS = Path(__file__).with_name("learning.py"), 60
LEAST = {"int8": 3.8, "int4": 7.3, "ternary": 16.0, "sign": 20.0, "qsgd": 7.0, "topk": 40.0, "powersgd": 6.0}
KNOBS = {"powersgd": "start=2", "sign": "group=128", "ternary": "group=128", "qsgd": "group=128"}
Processes = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def learned(processes: Processes) -> list[dict[str, Any]]:
    """How two processes learned with each kind."""
    return processes(2, LEARNING, "none", *(f"{kind},{KNOBS[kind]}" if kind in KNOBS else kind for kind in KINDS))


@pytest.mark.parametrize("kind", KINDS)
def test_processes_learn_together(kind: str, learned: list[dict[str, Any]]) -> None:
    found = [one[kind] for one in learned]
    assert found[0]["digest"] == found[1]["digest"]
    for one in found:
        assert one["losses"][-1] < 0.5 * one["losses"][0]
        assert one["plain"] == STEPS * 4 * one["weights"]  # 2 (n - 1) / n of float32, for n of 2
        assert one["plain"] > LEAST[kind] * one["sent"]


@pytest.mark.parametrize("kind", ["int8", "int4", "qsgd"])
def test_a_few_bits_learn_as_float32_does(kind: str, learned: list[dict[str, Any]]) -> None:
    plain, few = ([one[name]["losses"][-1] for one in learned] for name in ("none", kind))
    assert sum(few) == pytest.approx(sum(plain), rel=0.05)


def test_nothing_holds_a_group_that_was_left(learned: list[dict[str, Any]]) -> None:
    """Its threads would go on to the end of the process, and now and then abort it there."""
    assert all(one["left"] for one in learned)


def test_what_was_lost_of_a_gradient_follows_its_parameter_into_another_bucket(together: Any) -> None:
    """DistributedDataParallel makes its buckets anew after the first step."""

    def flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors])

    parameters = [torch.zeros(16), torch.zeros(4, 8)]
    gradients = [torch.linspace(-1, 1, 16), torch.linspace(-3, 2, 32).view(4, 8)]

    def act(group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        hook = Hook(Mean(Wire(group, Meter()), Integers(bits=2, group=8)))
        hook.average(flat(gradients), parameters, 0)
        before = torch.cat([hook.owed[p] for p in parameters[::-1]])
        hook.mean.owed.clear()
        return hook.average(flat(gradients[::-1]), parameters[::-1], 0), before

    (first, owed), (other, _) = together(2, act)
    assert torch.equal(first, other)
    assert owed.norm() > 0

    def plain(group: dist.ProcessGroup) -> Tensor:
        return Mean(Wire(group, Meter()), Integers(bits=2, group=8)).of(flat(gradients[::-1]) + owed, 0)[0]

    assert torch.equal(first, together(2, plain)[0])


def test_what_goes_wrong_in_the_thread_is_heard(together: Any) -> None:
    def act(group: dist.ProcessGroup) -> str:
        def fail() -> Tensor:
            raise ArithmeticError("no mean")

        try:
            Hook(Mean(Wire(group, Meter()), Integers())).soon(torch.device("cpu"), fail).wait()
        except ArithmeticError as error:
            return str(error)
        return ""

    assert together(1, act) == ["no mean"]


def test_a_meter_says_how_much_less_there_was() -> None:
    assert str(Meter(sent=1_000_000, plain=8_000_000)) == "1.0 MB sent, 8.0 times less than in float32"
    assert Meter().ratio == 1.0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Linear has no processes.*DistributedDataParallel"):
        compress_gradients(nn.Linear(2, 2), "int4")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"'int5' is none of int8, int4.*did you mean 'int[48]'"):
        code_of("int5", {})
    with pytest.raises(RecipeError, match="int4 has no bits; it has group"):
        code_of("int4", {"bits": 2})
    with pytest.raises(RecipeError, match="fraction"):
        code_of("topk", {"fraction": 7})
    assert set(LEAST) == set(KINDS) == {*CODES, "powersgd"}


def test_a_model_has_one_hook(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'alone'}", world_size=1, rank=0)
    try:
        model = DistributedDataParallel(nn.Linear(2, 2))
        meter = compress_gradients(model, "sign")
        with pytest.raises(ModelError, match=r"compress_gradients.*wrap the model anew"):
            compress_gradients(model, "int4")
        with pytest.raises(RecipeError, match="rank=0"):
            compress_gradients(DistributedDataParallel(nn.Linear(2, 2)), "powersgd", rank=0)
        model(torch.tensor([[2.0, 3.0]])).sum().backward()
        assert torch.equal(model.module.weight.grad, torch.tensor([[2.0, 3.0]]).expand(2, -1))  # nobody is told
        assert (meter.sent, meter.plain) == (0, 0)
    finally:
        dist.destroy_process_group()
