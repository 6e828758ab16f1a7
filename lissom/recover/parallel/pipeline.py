"""Pipeline parallel: stages of a model on several workers, parts of a batch going through them one behind the other.

Each part goes forward through all stages and back; in what order a worker does what is one of PyTorch's schedules:

    gpipe        all parts forward, then all back           Huang et al., NeurIPS 2019, arXiv:1811.06965
    1f1b         one forward, one back, in turns            Narayanan et al., SOSP 2019, arXiv:1806.03377
    interleaved  that, with two stages on each worker       Narayanan et al., SC 2021, arXiv:2104.04473
    zerobubble   that, with gradients of weights when idle  Qi et al., ICLR 2024, arXiv:2401.10241
    zbv          that, where the last stage is the first's  ibid., section 6

Where a model is cut into stages is for `cut.py` to say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from lissom.errors import DataError
from lissom.recover.feed import Lot, size
from lissom.recover.parallel.stages import Chain, inputs_of

Far = Callable[[Tensor, Lot], Tensor]

SCHEDULES: Mapping[str, Any] = {
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
    "interleaved": ScheduleInterleaved1F1B,
    "zerobubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
}
TWICE = ("interleaved", "zerobubble", "zbv")  # those with two stages on each worker
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DIMS = 8  # that a tensor which is handed on may have


def places(schedule: str, workers: int) -> list[int]:
    """The worker of each stage."""
    once = list(range(workers))
    if schedule not in TWICE:
        return once
    return once + (once[::-1] if schedule == "zbv" else once)


class Stage(nn.Module):
    """A stage as a schedule runs it: what comes first is given only the number of a part of the batch."""

    def __init__(self, part: nn.Module, pipeline: "Pipeline", *, first: bool) -> None:
        super().__init__()
        self.part, self.pipeline, self.first = part, pipeline, first

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the part makes, through which gradients come back even where nothing before it moves."""
        entered = self.pipeline.chain.inputs(self.pipeline.parts[int(given[0])].batch) if self.first else given
        made = self.part(*entered)
        several = made if isinstance(made, tuple) else (made,)
        if torch.is_grad_enabled():
            several = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in several)
        return several if len(several) > 1 else several[0]


@dataclass(slots=True)
class Passed:
    """A batch that has gone through this worker's stages.

    What the model says, where the last stage is; of each stage what it was given and has made, empty; and what is being
    sent.
    """

    said: Tensor | None = None
    shapes: dict[int, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict)
    waiting: list[Any] = field(default_factory=list)

    def wait(self) -> None:
        """Until all of it is sent."""
        for work in self.waiting:
            work.wait()


class Pipeline:
    """The stages that this worker has, and how a batch goes through those of all.

    Args:
        chain: the model.
        stages: this worker's, by their numbers.
        mesh: of one axis, the workers.
        schedule: one of `SCHEDULES`.
    """

    def __init__(self, chain: Chain, stages: Mapping[int, nn.Module], mesh: DeviceMesh, schedule: str) -> None:
        self.chain = chain
        self.group, self.rank, self.schedule = mesh.get_group(), mesh.get_local_rank(), schedule
        self.where = places(schedule, mesh.size())
        self.last = len(self.where) - 1
        self.bare = {number: Stage(part, self, first=number == 0) for number, part in sorted(stages.items())}
        self.stages: dict[int, nn.Module] = dict(self.bare)  # as they learn, wrapped where others do the same
        self.device = next((p.device for stage in stages.values() for p in stage.parameters()), torch.device("cpu"))
        self.parts: Sequence[Lot] = ()
        self.far: Far = lambda said, lot: said
        self.known: dict[Any, Any] = {}

    def learn(self, parts: Sequence[Lot], far: Far) -> Tensor:
        """Take the gradients of the summed loss of some parts of a batch, alike in shape; the loss, on all workers."""
        schedule = self.scheduled(parts)
        self.parts, self.far = parts, far
        numbers = torch.arange(len(parts))
        losses: list[Tensor] = []
        given = [numbers] if 0 in self.stages else []
        target = {"target": numbers, "losses": losses} if self.last in self.stages else {}
        schedule.step(*given, **target, return_outputs=False)
        return self.told(torch.stack(losses).sum() if losses else torch.zeros(()))

    def scheduled(self, parts: Sequence[Lot]) -> Any:
        """The schedule for parts of this shape."""
        key = (len(parts), *((name, x.shape) for name, x in inputs_of(parts[0].batch).items()))
        if key not in self.known:
            self.known[key] = self.made(parts)
        return self.known[key]

    def made(self, parts: Sequence[Lot]) -> Any:
        """A schedule of PyTorch, told the shapes of all that is handed on, for which one part goes forward.

        Raises:
            DataError: it cannot take so many parts through so many stages.
        """
        passed, count = self.forward(parts[0]), len(self.where)
        passed.wait()
        stages = []
        for number, stage in self.stages.items():
            entered, left = (tuple(x.requires_grad_(x.is_floating_point()) for x in xs) for xs in passed.shapes[number])
            shapes: Any = {"input_args": entered, "output_args": left}
            stages.append(PipelineStage(stage, number, count, self.device, group=self.group, **shapes))
        given: Any = stages if self.schedule in TWICE else stages[0]
        try:
            return SCHEDULES[self.schedule](given, len(parts), self.loss, scale_grads=False)
        except ValueError as error:
            raise DataError(
                f"pipeline: {self.schedule} cannot take {len(parts)} parts of a batch through {count} stages; give "
                f"another accumulate, or a larger batch. {error}"
            ) from None

    def loss(self, said: Tensor, number: Tensor) -> Tensor:
        """That of a part of the batch."""
        return self.far(said.float(), self.parts[int(number)])

    @torch.no_grad()
    def forward(self, lot: Lot) -> Passed:
        """Let a batch go through all stages."""
        self.parts, passed = [lot], Passed()
        made: list[Tensor] = []
        for number, stage in self.bare.items():
            if number == 0:
                entered = [torch.zeros(1, dtype=torch.long)]
            else:
                before = self.where[number - 1]
                entered = made if before == self.rank else self.received(before)
            found = stage(*entered)
            made = list(found) if isinstance(found, tuple) else [found]
            passed.shapes[number] = (empty(entered), empty(made))
            if number < self.last and self.where[number + 1] != self.rank:
                passed.waiting += self.sent(made, self.where[number + 1])
        passed.said = made[0].float() if self.last in self.bare else None
        return passed

    def sent(self, several: Sequence[Tensor], to: int) -> list[Any]:
        """Hand tensors to another worker, and before them how many and how large they are."""
        count = torch.tensor([len(several)], device=self.device)
        heads = torch.zeros(len(several), DIMS + 2, dtype=torch.long)
        for head, x in zip(heads, several, strict=True):
            head[: 2 + x.dim()] = torch.tensor([FLOATS.index(x.dtype), x.dim(), *x.shape])
        letters = [count, heads.to(self.device), *(x.contiguous() for x in several)]
        return [dist.isend(x, group=self.group, group_dst=to) for x in letters]

    def received(self, of: int) -> list[Tensor]:
        """What another worker has sent."""
        count = torch.zeros(1, dtype=torch.long, device=self.device)
        dist.recv(count, group=self.group, group_src=of)
        heads = torch.zeros(int(count), DIMS + 2, dtype=torch.long, device=self.device)
        dist.recv(heads, group=self.group, group_src=of)
        kinds = [(FLOATS[kind], shape[:dims]) for kind, dims, *shape in heads.tolist()]
        found = [torch.empty(shape, dtype=kind, device=self.device) for kind, shape in kinds]
        for x in found:
            dist.recv(x, group=self.group, group_src=of)
        return found

    @torch.no_grad()
    def judged(self, lots: Sequence[Lot], far: Far) -> list[float]:
        """The loss of each batch, on all workers."""
        several = [self.forward(lot) for lot in lots]
        losses = [far(one.said, lot) for one, lot in zip(several, lots, strict=True) if one.said is not None]
        for one in several:
            one.wait()
        return self.told(torch.stack(losses) if losses else torch.zeros(len(lots))).tolist()

    def told(self, losses: Tensor) -> Tensor:
        """What the last stage's worker has, on all of them."""
        found = losses.detach().to(self.device, torch.float32).clone()
        dist.broadcast(found, group=self.group, group_src=self.where[self.last])
        return found


def empty(several: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the same kind that hold nothing."""
    return [torch.empty_like(x, device="meta") for x in several]


def parts_of(lot: Lot, asked: int, stages: int) -> list[Lot]:
    """A worker's share of a batch in equal parts: as many as are asked for, or else about four for each stage.

    Raises:
        DataError: it cannot be cut so.
    """
    n = size(lot.batch)
    if asked > 1 and n % asked:
        raise DataError(
            f"pipeline: {n} examples of a batch to a worker cannot be cut into {asked} equal parts (accumulate)"
        )
    most = asked if asked > 1 else max(m for m in range(1, min(n, 4 * stages) + 1) if n % m == 0)
    return lot.parts(most)
