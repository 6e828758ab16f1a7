"""The learner: a model, what moves of it, what moves that, and what is to be learned; one step of it all.

Of several workers each takes a step by its share of the batch, and all move alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lissom.calibrate.data import device_of
from lissom.compress.layers import evaluating
from lissom.errors import RecipeError
from lissom.recover.checkpointing import checkpointed
from lissom.recover.feed import Lot, size
from lissom.recover.lessons import Lesson, finite
from lissom.recover.moving import Moving, alike
from lissom.recover.parallel.gradients import compress_gradients
from lissom.recover.parallel.layout import is_sharded
from lissom.recover.parallel.wire import Meter
from lissom.recover.parallel.workers import ALONE, Workers
from lissom.recover.training import PLAIN, Training
from lissom.statistics import multiplies_bfloat16

Phi = dict[Parameter, Tensor]


@dataclass(slots=True, kw_only=True)
class Learner:
    """A model that learns: what moves, what moves it, and how.

    Args:
        model: what learns, in whatever mode it is in.
        moving: its parameters, in their units.
        optimizer: over φ.
        lesson: what is to be learned.
        training: how it learns.
        workers: those that learn together, each from its share of every batch.
    """

    model: nn.Module
    moving: Moving
    optimizer: Optimizer
    lesson: Lesson
    training: Training
    workers: Workers = ALONE
    meter: Meter | None = field(init=False, default=None)
    shared: nn.Module = field(init=False)
    rates: list[float] = field(init=False)
    average: Phi | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.shared = self.model
        kind = self.training.gradients
        if self.workers.count == 1 and kind != PLAIN:
            raise RecipeError(
                f"gradients: {kind!r} is how they travel between workers, and there is one; start several, with "
                "torchrun, or leave it out"
            )
        if self.training.ema:
            self.average = self.moving.copied()

    def join(self, lot: Lot) -> None:
        """Share the model with the other workers; `lot` tells whether all that moves has a gradient."""
        if self.workers.group is None or is_sharded(self.model):
            return
        self.take_gradients(lot)
        missing = sum(phi.grad is None for phi in self.moving.phi.values())
        unused = self.workers.mean(missing, 1) > 0
        self.shared = DistributedDataParallel(
            self.model, process_group=self.workers.group, find_unused_parameters=unused
        )
        if self.training.gradients != PLAIN:
            self.meter = compress_gradients(self.shared, self.training.gradients)

    def step(self, lot: Lot, share: float, number: int) -> float:
        """Learn from a batch; the loss before. `share` is how much of all is done, steps count from 1."""
        factor = self.training.factor(share)
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * factor
        own = lot.share(self.workers.rank, self.workers.count)
        closure: Any = lambda: self.take_gradients(own)  # noqa: E731, of a tensor, whatever its stub says
        found = finite(self.optimizer.step(closure))
        if self.average is not None:
            stays = min(self.training.ema, number / (number + 9))  # at first it follows soon
            for p, phi in self.moving.phi.items():
                self.average[p].lerp_(phi.detach(), 1 - stays)
        return found

    def take_gradients(self, lot: Lot) -> Tensor:
        """Compute those of φ, where it is now, as means over all workers; the loss there, of this one."""
        self.moving.place()
        device, whole = device_of(self.model), size(lot.batch)
        bf16 = self.training.bf16 and (device.type != "cpu" or multiplies_bfloat16())
        total = torch.zeros((), device=device)
        parts = lot.parts(self.training.accumulate)
        for part in parts:
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
            with nullcontext() if part is parts[-1] else self.apart(), torch.enable_grad(), autocast:
                loss = self.lesson.loss(self.shared, part) * (size(part.batch) / whole)
                loss.backward()
            total += loss.detach()
        self.moving.pull()
        if self.training.clip:
            nn.utils.clip_grad_norm_(list(self.moving.phi.values()), self.training.clip)
        return total

    def apart(self) -> AbstractContextManager[None]:
        """Within the block gradients add up on each worker by itself."""
        shared = self.shared
        return shared.no_sync() if isinstance(shared, DistributedDataParallel) else nullcontext()

    def best(self) -> Phi:
        """φ as it is to be looked at and kept; to be called where the optimizer judges."""
        return self.moving.copied() if self.average is None else {p: e.clone() for p, e in self.average.items()}

    def buffers(self) -> dict[str, Tensor]:
        """What batch norms remember, where they learn."""
        if not self.training.norms:
            return {}
        parts = {name: part for name, part in self.model.named_modules() if isinstance(part, _BatchNorm)}
        return {f"{name}.{own}": b for name, part in parts.items() for own, b in part.named_buffers()}

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Within the block the model is in the mode to learn in."""
        norms = [part for part in self.model.modules() if self.training.norms and isinstance(part, _BatchNorm)]
        with evaluating(self.model), checkpointed(self.model, self.training.checkpointing):
            for part in norms:
                part.train()
            yield
            for part in norms:
                part.eval()

    def state(self) -> dict[str, Any]:
        """Where it stands."""
        average = {} if self.average is None else self.moving.named(self.average)
        phi = self.moving.named(self.moving.phi)
        return {"phi": phi, "average": average, "optimizer": self.optimizer.state_dict(), "buffers": self.buffers()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand there again."""
        self.optimizer.load_state_dict(state["optimizer"])
        for part in getattr(self.optimizer, "parts", [self.optimizer]):
            for p, held in part.state.items():
                held |= {name: alike(own, p) for name, own in held.items() if own_shape(own) == p.shape}
        with torch.no_grad():
            for p, value in self.moving.by_parameter(state["phi"]).items():
                self.moving.phi[p].copy_(value)
            if self.average is not None:
                self.average = self.moving.by_parameter(state["average"])
        self.remember(state["buffers"])

    @torch.no_grad()
    def remember(self, buffers: Mapping[str, Tensor]) -> None:
        """Put back what batch norms remembered."""
        for name, own in self.buffers().items():
            own.copy_(buffers[name])

    @torch.no_grad()
    def judged(self, held: Sequence[Lot]) -> float:
        """The loss on what was held out, in the precision and the mode that the model is served in."""
        norms = [part for part in self.model.modules() if isinstance(part, _BatchNorm) and part.training]
        for part in norms:
            part.eval()
        shares = [lot.share(self.workers.rank, self.workers.count) for lot in held]
        sizes = [size(share.batch) for share in shares]
        lots = [share if n else lot for n, share, lot in zip(sizes, shares, held, strict=True)]  # for all run as often
        found = [finite(self.lesson.loss(self.model, lot)) for lot in lots]
        for part in norms:
            part.train()
        return self.workers.mean(sum(n * one for n, one in zip(sizes, found, strict=True)), sum(sizes))


def own_shape(value: Any) -> torch.Size | None:
    """The shape of a tensor; None of anything else."""
    return value.shape if isinstance(value, Tensor) else None
