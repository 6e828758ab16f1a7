"""Gradients that travel in few bits: a hook for PyTorch's DistributedDataParallel.

Each bucket of gradients, as it becomes ready on the way back, is written in a code and averaged in two shots
(`mean.py`), while the way back goes on. What a code loses of a process's gradient is added to its next one, where the
code forgets.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group exists, as DDP would later: its functions' defaults hold it for good
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lissom.errors import ModelError, RecipeError, meant, reason
from lissom.recover.parallel.codes import Code, Integers, Qsgd, Sign, TernGrad, TopK
from lissom.recover.parallel.mean import Mean, finite
from lissom.recover.parallel.wire import Meter, Wire, summed
from lissom.techniques.knobs import at_least

Bucket: TypeAlias = dist.GradBucket  # type: ignore[attr-defined, name-defined]
POWER = "powersgd"
CODES: Mapping[str, tuple[type[Code], Mapping[str, Any]]] = {
    "int8": (Integers, {"bits": 8}),
    "int4": (Integers, {"bits": 4}),
    "ternary": (TernGrad, {}),
    "sign": (Sign, {}),
    "qsgd": (Qsgd, {}),
    "topk": (TopK, {}),
}
KINDS = (*CODES, POWER)


def compress_gradients(model: nn.Module, kind: str = "int4", **knobs: Any) -> Meter:
    """Let the gradients of a model travel in few bits from now on.

    Args:
        model: as DistributedDataParallel has wrapped it, on any backend; it has no hook yet.
        kind: int8 or int4, the nearest of so many levels (`group`); ternary, drawn (`group`, `clip`); sign, one bit
            (`group`); qsgd, drawn levels (`bits`, `group`, `norm`); topk, the largest only (`fraction`); powersgd, a
            product of low `rank` from the step `start` on, of gradients that are matrices (Vogels, Karimireddy, Jaggi,
            NeurIPS 2019, arXiv:1905.13727; PyTorch's).
        knobs: as the kind has them, by name.

    Returns:
        A meter of the bytes that this process sends.

    Raises:
        ModelError: the model is not wrapped, or has a hook.
        RecipeError: the kind or a knob does not exist, or has an impossible value.
    """
    if not isinstance(model, DistributedDataParallel):
        raise ModelError(
            f"compress_gradients: {type(model).__name__} has no processes to share gradients with; wrap it in "
            "torch.nn.parallel.DistributedDataParallel first"
        )
    meter = Meter()
    wire = Wire(model.process_group, meter)
    state: Any
    state, hook = power_of(wire, **knobs) if kind == POWER else (Hook(Mean(wire, code_of(kind, knobs))), averaged)
    try:
        model.register_comm_hook(state, hook)
    except RuntimeError as error:
        raise ModelError(f"compress_gradients: {reason(error)}; wrap the model anew") from None
    return meter


def code_of(kind: str, knobs: Mapping[str, Any]) -> Code:
    """The code of a kind.

    Raises:
        RecipeError: there is none, or a knob does not exist or has an impossible value.
    """
    if kind not in CODES:
        raise RecipeError(f"gradients: {kind!r} is none of {', '.join(KINDS)}{meant(kind, KINDS)}")
    code, given = CODES[kind]
    possible = [name for name in inspect.signature(code).parameters if name not in given]
    for name in knobs:
        if name not in possible:
            raise RecipeError(f"gradients: {kind} has no {name}; it has {', '.join(possible)}{meant(name, possible)}")
    return code(**given, **knobs)


class Hook:
    """What one model's hook remembers: what was lost of each parameter's gradient."""

    def __init__(self, mean: Mean) -> None:
        self.mean = mean
        self.owed: dict[Tensor, Tensor] = {}
        self.thread = ThreadPoolExecutor(1, "gradients")  # one after the other: all processes in the same order

    def average(self, buffer: Tensor, parameters: Sequence[Tensor], index: int) -> Tensor:
        """The mean of a bucket of these parameters' gradients over all processes, in its own precision."""
        x = buffer.float()
        if self.mean.code.forgets and self.owed:
            x = x + torch.cat([self.owed[p] if p in self.owed else p.new_zeros(p.numel()) for p in parameters])
        mean, lost = self.mean.of(x, index)
        if self.mean.code.forgets:
            sizes = [p.numel() for p in parameters]
            self.owed.update(zip(parameters, finite(lost).split(sizes), strict=True))
        return mean.to(buffer.dtype)

    def soon(self, device: torch.device, act: Callable[[], Tensor]) -> Future[Tensor]:
        """What `act` returns: on a processor later, by the thread, elsewhere in the order of its stream."""
        alone = device.type == "cpu"
        done: Future[Tensor] = Future() if alone else Future(devices=[device])

        def run() -> None:
            try:
                done.set_result(act())
            except Exception as error:  # whatever it was, who waits must hear of it
                done.set_exception(error)  # type: ignore[arg-type]  # says its stub

        if alone:
            self.thread.submit(run)
        else:
            run()
        return done


def averaged(state: Hook, bucket: Bucket) -> Future[Tensor]:
    """The hook of all kinds that are codes."""
    buffer, wire = bucket.buffer(), state.mean.wire
    counted(wire, buffer)
    if wire.size() == 1:
        done: Future[Tensor] = Future()
        done.set_result(buffer)
        return done
    return state.soon(buffer.device, partial(state.average, buffer, bucket.parameters(), bucket.index()))


def power_of(wire: Wire, *, rank: int = 1, start: int = 10) -> tuple[Any, Callable[..., Future[Tensor]]]:
    """PyTorch's PowerSGD on a wire.

    Raises:
        RecipeError: a knob has an impossible value.
    """
    at_least(1, rank=rank)
    at_least(2, start=start)  # DistributedDataParallel makes its buckets anew after the first step
    state = power.PowerSGDState(
        process_group=wire, matrix_approximation_rank=rank, start_powerSGD_iter=start, min_compression_rate=1
    )

    def hook(state: power.PowerSGDState, bucket: Bucket) -> Future[Tensor]:
        counted(wire, bucket.buffer())
        found: Future[Tensor] = power.powerSGD_hook(state, bucket)
        return found

    return state, hook


def counted(wire: Wire, buffer: Tensor) -> None:
    """Count what the gradients would have taken in float32."""
    wire.meter.plain += summed(4 * buffer.numel(), wire.size())
