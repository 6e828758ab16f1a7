"""The loop: examples in, steps of an optimizer out, and after some of them a look at what was held out.

What is kept in the end is what was best there, which may be the beginning. Where a keeper is given, whoever is stopped
goes on where it was looked at last, to the same result, unless it is time that ends it all.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lissom.calibrate.data import device_of
from lissom.compress.layers import evaluating
from lissom.errors import RecipeError
from lissom.progress import Progress, Tell, quiet
from lissom.recover.checkpointing import checkpointed
from lissom.recover.feed import Feed, Lot, counted, size
from lissom.recover.lessons import Lesson, finite
from lissom.recover.moving import Moving
from lissom.recover.optimizers import judging
from lissom.recover.parallel.gradients import compress_gradients
from lissom.recover.parallel.wire import Meter
from lissom.recover.parallel.workers import ALONE, Workers
from lissom.recover.schedules import rate
from lissom.recover.state import packed, unpacked
from lissom.statistics import multiplies_bfloat16

PLAIN = "float32"  # gradients as they are
LOOKS = 20  # at what was held out
TICKS = 10**9  # of a schedule, where it is time that ends it
Phi = dict[Parameter, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen after so many steps: the loss while learning, and that on what is held out.

    `learned` is its mean since the last look, None at first. `seen` counts tokens or examples that were learned from,
    `seconds` include the looks.
    """

    step: int
    seen: int
    seconds: float
    learned: float | None
    held: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """All looks, and which of them was best: what the model is now."""

    looks: tuple[Look, ...]
    best: int

    @property
    def before(self) -> Look:
        """The first look."""
        return self.looks[0]

    @property
    def after(self) -> Look:
        """The best look."""
        return self.looks[self.best]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"looks": [asdict(look) for look in self.looks], "best": self.best}


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """When it ends: after so many steps, or so many seconds; whichever is first."""

    steps: int | None = None
    seconds: float | None = None

    def share(self, step: int, seconds: float) -> float:
        """How much of it is done."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        return max(by_steps, 0.0 if self.seconds is None else seconds / self.seconds)


@runtime_checkable
class Keeper(Protocol):
    """Where it is kept how far training has come."""

    def keep(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None: ...
    def last(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None: ...


@dataclass(slots=True, kw_only=True)
class Learner:
    """A model that learns: what moves, what moves it, and how.

    Args:
        model: what learns, in whatever mode it is in.
        moving: its parameters, in their units.
        optimizer: over φ.
        lesson: what is to be learned.
        schedule, warmup, floor: of the rate: its name, the share of all that it rises for, where it ends.
        clip: of the norm of all gradients together, in units; 0 does not cut.
        accumulate: parts that a batch is cut into, each run by itself, whose gradients add up to a step.
        ema: how much of the average of φ stays at each step; the average is what is looked at and kept. 0 has none.
        bf16: whether products are taken in bfloat16 while learning, where the hardware has such.
        checkpointing: whether activations are computed again on the way back.
        norms: whether batch norms take the statistics of each batch, and remember them, while learning.
        workers: those that learn together, each from its share of every batch.
        gradients: what they travel in between workers: float32, or a kind of `compress_gradients`.
    """

    model: nn.Module
    moving: Moving
    optimizer: Optimizer
    lesson: Lesson
    schedule: str = "cosine"
    warmup: float = 0.02
    floor: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.0
    bf16: bool = True
    checkpointing: bool = False
    norms: bool = True
    workers: Workers = ALONE
    gradients: str = PLAIN
    meter: Meter | None = field(init=False, default=None)
    shared: nn.Module = field(init=False)
    rates: list[float] = field(init=False)
    average: Phi | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        rate(self.schedule, 0, TICKS, int(self.warmup * TICKS), self.floor)  # refuses what cannot be
        self.shared = self.model
        if self.workers.count == 1 and self.gradients != PLAIN:
            raise RecipeError(
                f"gradients: {self.gradients!r} is how they travel between workers, and there is one; start several, "
                "with torchrun, or leave it out"
            )
        if self.ema:
            self.average = self.moving.copied()

    def join(self, lot: Lot) -> None:
        """Share the model with the other workers; `lot` tells whether all that moves has a gradient."""
        if self.workers.group is None:
            return
        self.take_gradients(lot)
        missing = sum(phi.grad is None for phi in self.moving.phi.values())
        unused = self.workers.mean(missing, 1) > 0
        self.shared = DistributedDataParallel(
            self.model, process_group=self.workers.group, find_unused_parameters=unused
        )
        if self.gradients != PLAIN:
            self.meter = compress_gradients(self.shared, self.gradients)

    def step(self, lot: Lot, share: float, number: int) -> float:
        """Learn from a batch; the loss before. `share` is how much of all is done, steps count from 1."""
        factor = rate(self.schedule, int(share * TICKS), TICKS, int(self.warmup * TICKS), self.floor)
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * factor
        own = lot.share(self.workers.rank, self.workers.count)
        closure: Any = lambda: self.take_gradients(own)  # noqa: E731, of a tensor, whatever its stub says
        found = finite(self.optimizer.step(closure))
        if self.average is not None:
            stays = min(self.ema, number / (number + 9))  # at first it follows soon
            for p, phi in self.moving.phi.items():
                self.average[p].lerp_(phi.detach(), 1 - stays)
        return found

    def take_gradients(self, lot: Lot) -> Tensor:
        """Compute those of φ, where it is now, as means over all workers; the loss there, of this one."""
        self.moving.place()
        device, whole = device_of(self.model), size(lot.batch)
        bf16 = self.bf16 and (device.type != "cpu" or multiplies_bfloat16())
        total = torch.zeros((), device=device)
        parts = lot.parts(self.accumulate)
        for part in parts:
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
            with nullcontext() if part is parts[-1] else self.apart(), torch.enable_grad(), autocast:
                loss = self.lesson.loss(self.shared, part) * (size(part.batch) / whole)
                loss.backward()
            total += loss.detach()
        self.moving.pull()
        if self.clip:
            nn.utils.clip_grad_norm_(list(self.moving.phi.values()), self.clip)
        return total

    def apart(self) -> AbstractContextManager[None]:
        """Within the block gradients add up on each worker by itself."""
        shared = self.shared
        return shared.no_sync() if isinstance(shared, DistributedDataParallel) else nullcontext()

    def best(self) -> Phi:
        """φ as it is to be looked at and kept; to be called where the optimizer judges."""
        return self.moving.copied() if self.average is None else {p: e.clone() for p, e in self.average.items()}

    def buffers(self) -> dict[str, Tensor]:
        """What batch norms remember."""
        parts = {name: part for name, part in self.model.named_modules() if isinstance(part, _BatchNorm)}
        return {f"{name}.{own}": b for name, part in parts.items() for own, b in part.named_buffers() if self.norms}

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Within the block the model is in the mode to learn in."""
        norms = [part for part in self.model.modules() if self.norms and isinstance(part, _BatchNorm)]
        with evaluating(self.model), checkpointed(self.model, self.checkpointing):
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


def learn(
    learner: Learner,
    feed: Feed,
    until: Until,
    *,
    looks: int = LOOKS,
    patience: int | None = None,
    keeper: Keeper | None = None,
    enough: Callable[[nn.Module], bool] | None = None,
    progress: Tell = quiet,
) -> Curve:
    """Learn until it is time, and leave the model as it was best.

    Args:
        learner: what learns.
        feed: from what, and what is held out.
        until: when it ends.
        looks: how many times it is looked at what was held out, after the first.
        patience: it ends sooner after so many looks that were no better than an earlier one; None is never.
        keeper: where it is kept how far it has come, at each look.
        enough: asked of the model as it was looked at, after each look that is the best so far; True ends it all.
        progress: told of each look.

    Raises:
        DataError: the loss is no number, or the data comes to its end.
    """
    story, workers = Story(learner, feed), learner.workers
    story.begin(keeper)
    learner.join(feed.held[0])
    with learner.learning():
        for lot in feed.lots(story.step):
            share = story.share(until)
            if share >= 1 or story.worse(patience) or story.enough:
                break
            story.learn(lot, share)
            now = story.share(until)
            if math.floor(now * looks) > math.floor(share * looks) or now >= 1:
                story.look(enough)
                story.keep(keeper)
                if not workers.first:
                    continue
                total = until.steps if until.seconds is None else None
                text = f"loss {story.looks[-1].held:.4g} on what is held out, at first {story.looks[0].held:.4g}"
                progress(Progress(stage="recover", text=text, done=story.step, total=total))
    return story.end()


class Story:
    """How far training has come."""

    def __init__(self, learner: Learner, feed: Feed) -> None:
        self.learner, self.feed = learner, feed
        self.step = self.seen = self.best = 0
        self.before, self.since = 0.0, time.monotonic()
        self.losses: list[float] = []
        self.looks: list[Look] = []
        self.found: dict[str, Any] = {}  # φ and the buffers at the best look
        self.enough = False

    @property
    def seconds(self) -> float:
        """How long it has taken, with what was done before it was stopped."""
        return self.before + time.monotonic() - self.since

    def share(self, until: Until) -> float:
        """How much of it is done; where it is time that ends it, by the clock of the first worker."""
        found = until.share(self.step, self.seconds)
        return found if until.seconds is None else self.learner.workers.agreed(found)

    def begin(self, keeper: Keeper | None) -> None:
        """Where it was kept, or from the start."""
        kept = self.learner.workers.told(None if keeper is None else keeper.last())
        if kept is None:
            self.look(None)
            self.keep(keeper)
            return
        record, tensors = kept
        held = unpacked(record["state"], tensors)
        self.learner.restore(held["learner"])
        self.found = held["found"]
        self.step, self.seen, self.best = record["step"], record["seen"], record["best"]
        self.before, self.enough = record["seconds"], record["enough"]
        self.looks = [Look(**look) for look in record["looks"]]

    def learn(self, lot: Lot, share: float) -> None:
        """A step."""
        self.losses.append(self.learner.step(lot, share, self.step + 1))
        self.step, self.seen = self.step + 1, self.seen + counted(lot.batch)

    def look(self, enough: Callable[[nn.Module], bool] | None) -> None:
        """See how the model does on what was held out, and remember it if it is the best so far."""
        learner = self.learner
        learned = learner.workers.mean(sum(self.losses), len(self.losses)) if self.losses else None
        with judging(learner.optimizer):
            phi = learner.best()
        learner.moving.place(phi)
        held = judged(learner, self.feed)
        self.looks.append(Look(step=self.step, seen=self.seen, seconds=self.seconds, learned=learned, held=held))
        self.losses = []
        if len(self.looks) == 1 or held < self.looks[self.best].held:
            self.best = len(self.looks) - 1
            buffers = {name: own.clone() for name, own in learner.buffers().items()}
            self.found = {"phi": learner.moving.named(phi), "buffers": buffers}
            found = learner.workers.first and enough is not None and enough(learner.model)
            self.enough = bool(learner.workers.agreed(found))

    def worse(self, patience: int | None) -> bool:
        """Whether it was no better for so many looks."""
        return patience is not None and len(self.looks) - 1 - self.best >= patience

    def keep(self, keeper: Keeper | None) -> None:
        """Keep how far it has come."""
        if keeper is None:
            return
        tensors: dict[str, Tensor] = {}
        state = packed({"learner": self.learner.state(), "found": self.found}, tensors)
        numbers = {"step": self.step, "seen": self.seen, "best": self.best, "seconds": self.seconds}
        looks = [asdict(look) for look in self.looks]
        keeper.keep({**numbers, "enough": self.enough, "looks": looks, "state": state}, tensors)

    def end(self) -> Curve:
        """Leave the model as it was best."""
        moving = self.learner.moving
        moving.place(moving.by_parameter(self.found["phi"]))
        self.learner.remember(self.found["buffers"])
        return Curve(looks=tuple(self.looks), best=self.best)


@torch.no_grad()
def judged(learner: Learner, feed: Feed) -> float:
    """The loss on what was held out, in the precision and the mode that the model is served in."""
    norms = [part for part in learner.model.modules() if isinstance(part, _BatchNorm) and part.training]
    for part in norms:
        part.eval()
    workers = learner.workers
    own = feed.held[workers.rank :: workers.count]
    sizes = [size(lot.batch) for lot in own]
    found = [finite(learner.lesson.loss(learner.model, lot)) for lot in own]
    for part in norms:
        part.train()
    return workers.mean(sum(n * one for n, one in zip(sizes, found, strict=True)), sum(sizes))
