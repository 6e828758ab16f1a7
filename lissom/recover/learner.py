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
from lissom.recover.moving import Moving
from lissom.recover.optimizers import put_state, state_of
from lissom.recover.parallel.gradients import compress_gradients
from lissom.recover.parallel.laid import Laid
from lissom.recover.parallel.local import LocalSteps
from lissom.recover.parallel.pipeline import parts_of
from lissom.recover.parallel.wire import Meter
from lissom.recover.parallel.workers import Workers
from lissom.recover.training import PLAIN, Training

Phi = dict[Parameter, Tensor]


@dataclass(slots=True, kw_only=True)
class Learner:
    """A model that learns: what moves, what moves it, and how.

    Args:
        laid: what learns, in whatever mode it is in, as it is laid out over those that learn together.
        moving: its parameters, in their units.
        optimizer: over φ.
        lesson: what is to be learned.
        training: how it learns.
    """

    laid: Laid
    moving: Moving
    optimizer: Optimizer
    lesson: Lesson
    training: Training
    meters: list[Meter] = field(init=False, default_factory=list)
    shared: nn.Module = field(init=False)
    rates: list[float] = field(init=False)
    average: Phi | None = field(init=False, default=None)
    local: LocalSteps | None = field(init=False, default=None)
    kept: Mapping[str, Any] = field(init=False, default_factory=dict)  # of the local steps, for when they begin

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

    @property
    def model(self) -> nn.Module:
        """What learns."""
        return self.laid.model

    @property
    def workers(self) -> Workers:
        """Those that learn together."""
        return self.laid.team

    def join(self, lot: Lot) -> None:
        """Share the model with the other workers; `lot` tells whether all that moves has a gradient."""
        if self.workers.group is None or self.laid.sharded:
            return
        if self.training.local:
            self.join_now_and_then()
            return
        self.take_gradients(lot)
        missing = sum(phi.grad is None for phi in self.moving.phi.values())
        wrapped = self.laid.spread(unused=self.workers.mean(missing, 1) > 0)
        if wrapped and self.laid.pipeline is None:
            self.shared = wrapped[0]
        if self.training.gradients != PLAIN:
            self.meters = [compress_gradients(part, self.training.gradients) for part in wrapped]

    def join_now_and_then(self) -> None:
        """Meet the other workers after so many steps of one's own."""
        assert self.laid.mesh is not None
        kind = None if self.training.gradients == PLAIN else self.training.gradients
        group, phi = self.laid.mesh["data"].get_group(), nn.ParameterList(self.moving.phi.values())
        self.local = LocalSteps(phi, group, every=self.training.local, kind=kind)
        self.meters = [self.local.meter]
        if self.kept:
            self.local.restore(self.kept)

    def meet(self) -> None:
        """Be where all are, at once, if they step by themselves."""
        if self.local is not None:
            self.local.meet()

    def step(self, lot: Lot, share: float, number: int) -> float:
        """Learn from a batch; the loss before. `share` is how much of all is done, steps count from 1."""
        factor = self.training.factor(share)
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * factor
        own = self.laid.share(lot)
        closure: Any = lambda: self.take_gradients(own)  # noqa: E731, of a tensor, whatever its stub says
        found = finite(self.optimizer.step(closure))
        if self.local is not None:
            self.local.step()
        if self.average is not None:
            stays = min(self.training.ema, number / (number + 9))  # at first it follows soon
            for p, phi in self.moving.phi.items():
                self.average[p].lerp_(phi.detach(), 1 - stays)
        return found

    def take_gradients(self, lot: Lot) -> Tensor:
        """Compute those of φ, where it is now, as means over all workers; the loss there, of this one."""
        self.moving.place()
        total = self.there_and_back(lot) if self.laid.pipeline is None else self.through_stages(lot)
        self.laid.sum({name: p for p, name in self.moving.names.items()})
        self.moving.pull()
        if self.training.clip:
            self.cut_off()
        return total

    def there_and_back(self, lot: Lot) -> Tensor:
        """The gradients of the model's parameters, a part of the batch after the other; the loss."""
        whole, device = size(lot.batch), device_of(self.model)
        total = torch.zeros((), device=device)
        parts = lot.parts(self.training.accumulate)
        for part in parts:
            alone = nullcontext() if part is parts[-1] else self.apart()
            with alone, torch.enable_grad(), self.training.products(device):
                loss = self.lesson.loss(self.shared, part) * (size(part.batch) / whole)
                loss.backward()
            total += loss.detach()
        return total

    def through_stages(self, lot: Lot) -> Tensor:
        """The same, by all workers that have stages of the model."""
        pipeline = self.laid.pipeline
        assert pipeline is not None
        parts = parts_of(lot, self.training.accumulate, len(pipeline.where))

        def far(said: Tensor, part: Lot) -> Tensor:
            return self.lesson.far(said, part) / len(parts)

        with torch.enable_grad(), self.training.products(self.workers.device):
            return pipeline.learn(parts, far)

    def cut_off(self) -> None:
        """Keep the norm of all gradients together to what it may be."""
        gradients = [phi for phi in self.moving.phi.values() if phi.grad is not None]
        if not self.laid.divided:
            nn.utils.clip_grad_norm_(gradients, self.training.clip)
            return
        found = {self.moving.names[p]: phi.grad for p, phi in self.moving.phi.items() if phi.grad is not None}
        nn.utils.clip_grads_with_norm_(gradients, self.training.clip, self.laid.norm(found))

    def apart(self) -> AbstractContextManager[None]:
        """Within the block gradients add up on each worker by itself."""
        shared = self.shared
        return shared.no_sync() if isinstance(shared, DistributedDataParallel) else nullcontext()

    def best(self) -> Phi:
        """φ as it is to be looked at and kept; to be called where the optimizer judges."""
        return self.moving.copied() if self.average is None else {p: e.clone() for p, e in self.average.items()}

    def buffers(self) -> dict[str, Tensor]:
        """What batch norms remember, where they learn, of those that are here."""
        if not self.training.norms:
            return {}
        here = {id(module) for part in self.laid.parts() for module in part.modules()}
        parts = {n: part for n, part in self.model.named_modules() if isinstance(part, _BatchNorm) and id(part) in here}
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
        optimizer = state_of(self.optimizer, self.named())
        local = {} if self.local is None else self.local.state()
        return {"phi": phi, "average": average, "optimizer": optimizer, "buffers": self.buffers(), "local": local}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand there again."""
        names = self.named()
        put_state(self.optimizer, state["optimizer"], names, lambda phi, held: self.laid.placed(names[phi], held, phi))
        with torch.no_grad():
            for p, value in self.moving.by_parameter(state["phi"]).items():
                self.moving.phi[p].copy_(value)
            if self.average is not None:
                self.average = self.moving.by_parameter(state["average"])
        self.remember(state["buffers"])
        self.kept = state["local"]

    def named(self) -> dict[Parameter, str]:
        """The names of the parameters that the optimizer moves, each for one of the model's."""
        return {phi: self.moving.names[p] for p, phi in self.moving.phi.items()}

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
        shares = [self.laid.share(lot) for lot in held]
        sizes = [size(share.batch) for share in shares]
        lots = [share if n else lot for n, share, lot in zip(sizes, shares, held, strict=True)]  # for all run as often
        pipeline = self.laid.pipeline
        if pipeline is None:
            found = [finite(self.lesson.loss(self.model, lot)) for lot in lots]
        else:
            found = [finite(loss) for loss in pipeline.judged(lots, self.lesson.far)]
        for part in norms:
            part.train()
        return self.workers.mean(sum(n * one for n, one in zip(sizes, found, strict=True)), sum(sizes))
