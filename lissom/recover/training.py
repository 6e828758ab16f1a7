"""How a model is to learn: what a user says of it, as one noun."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lissom.errors import RecipeError, meant
from lissom.recover.lessons import LOSSES
from lissom.recover.moving import TRAIN
from lissom.recover.optimizers import OPTIMIZERS
from lissom.recover.parallel.gradients import KINDS
from lissom.recover.schedules import rate
from lissom.statistics import multiplies_bfloat16
from lissom.techniques.knobs import above, at_least, fraction, one_of, seed_of
from lissom.types import Knob

EPOCHS, LOOKS = 4, 10  # where nothing else is said
PLAIN = "float32"  # gradients as they are
STAGES = ("1f1b", "gpipe", "interleaved", "zerobubble", "zbv")
TICKS = 10**9  # of a schedule, which is told shares
# Rates of units: of the size of a grid's step, or of what weights are like.
RATES: Mapping[str, float] = {
    "sgd": 0.1,
    "momentum": 0.02,
    "nesterov": 0.02,
    "adagrad": 0.02,
    "rmsprop": 0.001,
    "adam": 0.002,
    "adamw": 0.002,
    "adamw8": 0.002,
    "lion": 0.0003,
    "muon": 0.005,
    "schedulefree": 0.004,
    "sam": 0.02,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model is to learn.

    Args:
        train: what moves: weights, scales, lora or all (`moving`).
        rank: of products of low rank, with lora.
        optimizer: one of `OPTIMIZERS`; `knobs` are its own, by name.
        lr: its rate, as a share of what a weight is like (`moving.py`); by default one that does for it.
        schedule, warmup, floor: of the rate: its name, the share of all in which it rises, the share where it ends.
        epochs, steps, tokens, minutes: how long, by one of them: passes over the data; steps; tokens of text, or of
            other data examples; time. By default 4 epochs.
        batch: examples of a step, where the data is one tensor of them.
        accumulate: parts that a batch is cut into, run one after the other, for less memory.
        clip: of the norm of all gradients together, in units; 0 cuts nothing.
        ema: share of the average of what moves that stays at each step, 0.999 say; 0 has no average.
        patience: looks at what is held out that may be no better before it ends; None is any number.
        looks: how many there are.
        loss: kl, of the predictions' distributions, or mse, of outputs that are no scores of classes.
        temperature: of both distributions (τ).
        hidden: wildcards of modules whose outputs are to be the original's, too; `hidden_weight` is what that counts.
        top_k: how many of the largest probabilities of each prediction of the original are remembered, so that it need
            not be in memory while the model learns; 0 remembers none, and the original runs beside it.
        bf16: whether products are taken in bfloat16 while learning, where the hardware has such.
        stages: of several workers along `pipeline`, in what order they take parts of a batch (`parallel/pipeline.py`):
            1f1b, gpipe, interleaved, zerobubble or zbv; `accumulate` is how many parts, or 1 for as many as do.
        checkpointing: whether activations are computed again on the way back, for less memory.
        norms: whether batch norms take the statistics of each batch while learning; by default where that brings the
            model nearer before it has learned anything (`norms.py`).
        gradients: what they travel in between several workers: float32, or fewer bits by a kind of `KINDS`.
        local: of several workers: steps that each takes by itself before all meet (`parallel/local.py`); what they tell
            each other then is written as `gradients` says. With 0 they meet at every step.
        seed: of the order of examples, and of products of low rank.
    """

    train: str = "weights"
    rank: int = 16
    optimizer: str = "adamw"
    lr: float | None = None
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    schedule: str = "cosine"
    warmup: float = 0.02
    floor: float = 0.0
    epochs: float | None = None
    steps: int | None = None
    tokens: int | None = None
    minutes: float | None = None
    batch: int = 16
    accumulate: int = 1
    clip: float = 1.0
    ema: float = 0.0
    patience: int | None = None
    looks: int = LOOKS
    loss: str = "kl"
    temperature: float = 1.0
    hidden: tuple[str, ...] = ()
    hidden_weight: float = 1.0
    top_k: int = 0
    bf16: bool = True
    stages: str = "1f1b"
    checkpointing: bool = False
    norms: bool | None = None
    gradients: str = PLAIN
    local: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise RecipeError(
                f"optimizer: {self.optimizer!r} is none of {', '.join(OPTIMIZERS)}{meant(self.optimizer, OPTIMIZERS)}"
            )
        one_of(TRAIN, train=self.train)
        one_of(LOSSES, loss=self.loss)
        one_of((PLAIN, *KINDS), gradients=self.gradients)
        one_of(STAGES, stages=self.stages)
        fraction(warmup=self.warmup, ema=self.ema)
        rate(self.schedule, 0, 1, 0, self.floor)
        at_least(1, rank=self.rank, batch=self.batch, accumulate=self.accumulate, looks=self.looks)
        at_least(0, clip=self.clip, hidden_weight=self.hidden_weight, top_k=self.top_k, local=self.local)
        above(0, temperature=self.temperature)
        seed_of(self.seed)
        given = {name: value for name, value in self.length.items() if value is not None}
        above(0, **given)
        if len(given) > 1:
            raise RecipeError(f"recover: {' and '.join(given)} both say how long to learn; give one of them")
        if self.patience is not None:
            at_least(1, patience=self.patience)
        if self.lr is not None:
            above(0, lr=self.lr)
        if self.local and (self.ema or self.optimizer == "schedulefree"):
            raise RecipeError("recover: of local steps no averages are taken; leave out local, or ema and schedulefree")
        if self.top_k and (self.hidden or self.loss != "kl" or self.temperature != 1):
            raise RecipeError(
                "recover: only probabilities are remembered of the original; leave out top_k, or hidden, loss and "
                "temperature"
            )

    @property
    def length(self) -> dict[str, float | None]:
        """How long, by its four names."""
        return {name: getattr(self, name) for name in ("epochs", "steps", "tokens", "minutes")}

    @property
    def rate(self) -> float:
        """The rate that is asked for, or that does for the optimizer."""
        return RATES[self.optimizer] if self.lr is None else self.lr

    def factor(self, share: float) -> float:
        """What the rate is multiplied with when so much of all is done; schedule-free only warms up."""
        schedule = "constant" if self.optimizer == "schedulefree" else self.schedule
        return rate(schedule, int(share * TICKS), TICKS, int(self.warmup * TICKS), self.floor)

    def products(self, device: torch.device) -> torch.autocast:
        """The context that products are taken in while it learns."""
        bf16 = self.bf16 and (device.type != "cpu" or multiplies_bfloat16())
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it: what was said, without what is so by default."""
        usual = Training()
        said = {name: value for name, value in asdict(self).items() if value != getattr(usual, name)}
        return {**said, "optimizer": self.optimizer, "lr": self.rate}
