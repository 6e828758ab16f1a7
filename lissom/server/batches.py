"""What waits for a module: requests that can be run together are, bounded by rows, by delay and by their deadlines.

Whether they can is not taken on trust. The signature must leave the first dim of every tensor open; and the first time
that several wait, they are run together and one by one, and stay apart for good where the answers differ.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import HTTPException
from torch import Tensor

from lissom.engine.link import Frame
from lissom.engine.modules import packed, unpacked
from lissom.server.line import STARTING, Line
from lissom.server.metrics import Metrics
from lissom.server.service import Limits

log = logging.getLogger("lissom.server")
SAME = 1e-3  # of the largest output: kernels for several rows may round in another way
FAILED = "the model failed on these inputs; the server's log says why"
LATE = "the request waited longer than its timeout; try again later, or with a longer one"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiting:
    """Inputs of one request, since when they wait and until when they may, and where their outputs go."""

    inputs: Sequence[Tensor]
    since: float
    until: float
    outputs: "asyncio.Future[list[Tensor]]"

    @property
    def rows(self) -> int:
        """The size of the first dim."""
        return self.inputs[0].shape[0]

    @property
    def kind(self) -> list[Any]:
        """What must be equal of those that are run together."""
        return [(tensor.dtype, tensor.shape[1:]) for tensor in self.inputs]

    @property
    def alike(self) -> bool:
        """Whether all inputs have as many rows."""
        return all(tensor.shape[0] == self.rows for tensor in self.inputs)


class Batches:
    """The queue before a module, and the one task that empties it."""

    def __init__(
        self, name: str, line: Line, limits: Limits, metrics: Metrics, *, max_batch: int, max_delay_ms: float
    ) -> None:
        self.line = line
        signature = line.greeting["signature"]
        every = [*signature["inputs"], *signature["outputs"]]
        self._together = all(spec["shape"][:1] == [-1] for spec in every)
        self._proven = False  # that it makes no difference
        self._name, self._limits, self._metrics = name, limits, metrics
        self._max_batch, self._delay = max_batch, max_delay_ms / 1000
        self._queue: list[Waiting] = []
        self._more = asyncio.Event()
        self._answer: asyncio.Future[Frame] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop now."""
        if self._task is not None:
            self._task.cancel()

    @property
    def busy(self) -> bool:
        """Whether the module runs."""
        return self._answer is not None

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def check(self) -> None:
        """See that another request can wait.

        Raises:
            HTTPException: 429 when the queue is full, 503 when the module is in trouble.
        """
        if self.line.trouble:
            raise HTTPException(503, self.line.trouble)
        if len(self._queue) > self._limits.waiting:
            raise HTTPException(429, "the queue is full; try again later", headers={"Retry-After": "1"})

    async def run(self, inputs: Sequence[Tensor], timeout: float) -> list[Tensor]:
        """The outputs of these inputs, which may wait for so many seconds.

        Raises:
            HTTPException: the model failed, is not there, or was not free in time.
        """
        if self.line.ended:
            raise HTTPException(503, self.line.trouble or STARTING)
        now = time.monotonic()
        outputs: asyncio.Future[list[Tensor]] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(inputs=inputs, since=now, until=now + timeout, outputs=outputs))
        self._more.set()
        return await outputs

    def hear(self, said: Mapping[str, Any], behind: bytes) -> None:
        """The outputs have come."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((dict(said), behind))

    def give_up(self, reason: HTTPException) -> None:
        """Nothing will come for those that are run and those that wait."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(reason)
        for one in self._queue:
            fail(one, reason)
        self._queue.clear()

    async def _work(self) -> None:
        while True:
            await self._more.wait()
            await self._gather()
            if chosen := self._choose():
                await self._serve(chosen)
            else:
                self._more.clear()

    async def _gather(self) -> None:
        """Wait a little for more, where that is wanted."""
        while self._together and self._queue and sum(one.rows for one in self._queue) < self._max_batch:
            left = self._queue[0].since + self._delay - time.monotonic()
            if left <= 0:
                return
            self._more.clear()
            try:
                async with asyncio.timeout(left):
                    await self._more.wait()
            except TimeoutError:
                return

    def _choose(self) -> list[Waiting]:
        """The one that has waited longest, and those that can be run with it."""
        now = time.monotonic()
        for one in self._queue:
            if now > one.until:
                fail(one, HTTPException(504, LATE))
        self._queue = [one for one in self._queue if not one.outputs.done()]
        chosen, rows = self._queue[:1], self._queue[0].rows if self._queue and self._together else 0
        if chosen and self._together and chosen[0].alike:
            for one in self._queue[1:]:
                if one.alike and one.kind == chosen[0].kind and rows + one.rows <= self._max_batch:
                    chosen.append(one)
                    rows += one.rows
        self._queue = [one for one in self._queue if one not in chosen]
        return chosen

    async def _serve(self, chosen: Sequence[Waiting]) -> None:
        try:
            if len(chosen) == 1 or (joint := await self._joint(chosen)) is None:
                for one in chosen:
                    await self._alone(one)
            elif self._proven:
                for one, outputs in zip(chosen, joint, strict=True):
                    give(one, outputs)
            else:
                alone = [await self._alone(one) for one in chosen]
                self._together = self._proven = all(map(close, joint, alone))
                if not self._proven:
                    log.warning("%s: outputs depend on what is run beside; requests are run one by one", self._name)
        except HTTPException as reason:
            for one in chosen:
                fail(one, reason)
        except Exception:  # the boundary of the task: the next ones must not wait for ever
            log.exception("%s could not be run", self._name)
            for one in chosen:
                fail(one, HTTPException(500, FAILED))

    async def _joint(self, chosen: Sequence[Waiting]) -> list[list[Tensor]] | None:
        """The outputs of each, from one run of all; None where the model failed, or gave another number of rows."""
        every = zip(*(one.inputs for one in chosen), strict=True)
        outputs = await self._run([torch.cat(parts) for parts in every])
        sizes = [one.rows for one in chosen]
        if outputs is None:
            return None
        if any(not output.dim() or output.shape[0] != sum(sizes) for output in outputs):
            self._together = False
            return None
        return [list(parts) for parts in zip(*(output.split(sizes) for output in outputs), strict=True)]

    async def _alone(self, one: Waiting) -> list[Tensor] | None:
        outputs = await self._run(one.inputs)
        if outputs is None:
            fail(one, HTTPException(500, FAILED))
        else:
            give(one, outputs)
        return outputs

    async def _run(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """What the module makes of inputs; None where it fails."""
        frame = packed(inputs)
        self.line.send(*frame)
        self._answer = asyncio.get_running_loop().create_future()
        started = time.monotonic()
        try:
            said, behind = await self._answer
        finally:
            self._answer = None
        self._metrics.inference.observe(time.monotonic() - started, self._name)
        return None if "failed" in said else unpacked(said, behind)


def give(one: Waiting, outputs: list[Tensor]) -> None:
    """A request gets its outputs, if it still waits."""
    if not one.outputs.done():
        one.outputs.set_result(outputs)


def fail(one: Waiting, reason: HTTPException) -> None:
    """A request gets none."""
    if not one.outputs.done():
        one.outputs.set_exception(reason)


def close(joint: Sequence[Tensor], alone: Sequence[Tensor] | None) -> bool:
    """Whether outputs are the same, but for how they are rounded."""
    return alone is not None and all(map(near, joint, alone))


def near(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, but for how they are rounded."""
    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    bound = SAME * float(b.abs().amax()) if b.numel() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=0, atol=bound, equal_nan=True)
