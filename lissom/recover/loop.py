"""The loop: examples in, steps of an optimizer out, and after some of them a look at what was held out.

What is kept in the end is what was best there, which may be the beginning. Where a keeper is given, whoever is stopped
goes on where it was looked at last, to the same result, unless it is time that ends it all.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from lissom.progress import Progress, Tell, quiet
from lissom.recover.feed import Feed, Lot, counted
from lissom.recover.learner import Learner
from lissom.recover.optimizers import judging
from lissom.recover.state import packed, unpacked


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


def learn(
    learner: Learner,
    feed: Feed,
    until: Until,
    *,
    keeper: Keeper | None = None,
    enough: Callable[[nn.Module], bool] | None = None,
    progress: Tell = quiet,
) -> Curve:
    """Learn until it is time, and leave the model as it was best.

    Args:
        learner: what learns, and how.
        feed: from what, and what is held out.
        until: when it ends.
        keeper: where it is kept how far it has come, at each look.
        enough: asked of the model as it was looked at, after each look that is the best so far; True ends it all.
        progress: told of each look.

    Raises:
        DataError: the loss is no number, or the data comes to its end.
    """
    story, workers = Story(learner, feed), learner.workers
    looks, patience = learner.training.looks, learner.training.patience
    story.begin(keeper)
    learner.join(feed.sample)
    with learner.learning():
        share = story.share(until)
        for lot in feed.lots(story.step):
            if share >= 1 or story.worse(patience) or story.enough:
                break
            story.learn(lot, share)
            before, share = share, story.share(until)
            if math.floor(share * looks) > math.floor(before * looks) or share >= 1:
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
        self.enough = self.kept = False

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
        self.kept = bool(self.learner.workers.agreed(keeper is not None))
        kept = self.learner.workers.told(None if keeper is None else keeper.last())
        if kept is None:
            self.look(None)
            self.keep(keeper)
            return
        record, tensors = kept
        held = unpacked(record["state"], tensors)
        self.learner.restore(held["learner"])
        moving = self.learner.moving
        self.found = held["found"] | {"phi": moving.named(moving.by_parameter(held["found"]["phi"]))}
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
        learner.meet()
        learned = learner.workers.mean(sum(self.losses), len(self.losses)) if self.losses else None
        with judging(learner.optimizer):
            phi = learner.best()
        learner.moving.place(phi)
        held = learner.judged(self.feed.held)
        self.looks.append(Look(step=self.step, seen=self.seen, seconds=self.seconds, learned=learned, held=held))
        self.losses = []
        if len(self.looks) == 1 or held < self.looks[self.best].held:
            self.best = len(self.looks) - 1
            buffers = {name: own.clone() for name, own in learner.buffers().items()}
            self.found = {"phi": learner.moving.named(phi), "buffers": buffers}
            self.enough = bool(learner.workers.agreed(enough is not None and enough(learner.model)))

    def worse(self, patience: int | None) -> bool:
        """Whether it was no better for so many looks."""
        return patience is not None and len(self.looks) - 1 - self.best >= patience

    def keep(self, keeper: Keeper | None) -> None:
        """Keep how far it has come; all workers gather it, the first one writes."""
        if not self.kept:
            return
        tensors: dict[str, Tensor] = {}
        packs = packed({"learner": self.learner.state(), "found": self.found}, tensors)
        state, tensors = self.learner.laid.assembled(packs, tensors)
        numbers = {"step": self.step, "seen": self.seen, "best": self.best, "seconds": self.seconds}
        looks = [asdict(look) for look in self.looks]
        if keeper is not None:
            keeper.keep({**numbers, "enough": self.enough, "looks": looks, "state": state}, tensors)

    def end(self) -> Curve:
        """Leave the model as it was best."""
        moving = self.learner.moving
        moving.place(moving.by_parameter(self.found["phi"]))
        self.learner.remember(self.found["buffers"])
        return Curve(looks=tuple(self.looks), best=self.best)
