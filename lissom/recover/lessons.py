"""Lessons: what a model is to say, and how far it is from saying it.

    labels      -log q_y                               of tokens: each is the label of those before it
    original    τ² KL( p ‖ q )                         Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2
    hidden      + λ mean_l ‖h_l - ĥ_l‖² / ‖h_l‖²       Romero et al., ICLR 2015, arXiv:1412.6550, eq. (3), scaled
    remembered  Σ_k p_k log p_k / q_k  +  (1 - Σ p_k) log (1 - Σ p_k) / (1 - Σ q_k)

p is what the original says, q what is learned; of outputs that are no scores of classes the loss is the squared error.
What is remembered are the K largest p of each prediction: all others together are one class more, so the loss is never
above the whole KL, and zero only where p and q agree on all of it.

Shapes: n predictions, v classes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lissom.calibrate import Batch, call
from lissom.calibrate.data import TARGETS, device_of
from lissom.compress.layers import said
from lissom.errors import DataError, ModelError
from lissom.recover.feed import Lot, is_text
from lissom.techniques.knobs import above, at_least, one_of

LOSSES = ("kl", "mse")
LEAST = 1e-6  # of the probability of all other classes, so that its logarithm is a number


@runtime_checkable
class Lesson(Protocol):
    """How far a model, or what one said, is from what it should say, as a mean over predictions of some examples."""

    def loss(self, model: nn.Module, lot: Lot) -> Tensor: ...
    def far(self, found: Tensor, lot: Lot) -> Tensor: ...


class Labels:
    """What the data itself says: classes, numbers, or, of windows of tokens, the next token."""

    def loss(self, model: nn.Module, lot: Lot) -> Tensor:
        """How far what a model says is from it (`far`)."""
        return self.far(answer(model, lot.batch), lot)

    def far(self, found: Tensor, lot: Lot) -> Tensor:
        """Cross entropy, or of targets that are no classes the squared error.

        Raises:
            DataError: the data has no labels.
        """
        if is_text(lot.batch):
            return F.cross_entropy(found[:, :-1].flatten(0, 1), lot.batch[:, 1:].long().to(found.device).flatten())
        wanted = target(lot.batch).to(found.device)
        if wanted.is_floating_point():
            return F.mse_loss(found, wanted)
        return F.cross_entropy(found.flatten(0, -2), wanted.flatten())


class Original:
    """What another model says to the same.

    `hidden` are wildcards of the names of modules, in both, whose outputs are to agree as well, and `weight` is λ.
    """

    def __init__(
        self,
        original: nn.Module,
        loss: str = "kl",
        *,
        temperature: float = 1.0,
        hidden: Sequence[str] = (),
        weight: float = 1.0,
    ) -> None:
        one_of(LOSSES, loss=loss)
        above(0, temperature=temperature)
        at_least(0, hidden_weight=weight)
        self.original, self.kind, self.temperature, self.weight = original, loss, temperature, weight
        self.hidden = named(original, hidden)

    def loss(self, model: nn.Module, lot: Lot) -> Tensor:
        """The distance of what both say, and of their hidden outputs."""
        with outputs(self.original, self.hidden) as wanted:
            p = self.wanted(lot)
        with outputs(model, self.hidden) as made:
            q = answer(model, lot.batch)
        far = self.distance(p, q)
        if self.hidden:
            far = far + self.weight * torch.stack([apart(wanted[name], made[name]) for name in self.hidden]).mean()
        return far

    def far(self, found: Tensor, lot: Lot) -> Tensor:
        """The distance of what was said from what the original says."""
        return self.distance(self.wanted(lot), found)

    @torch.no_grad()
    def wanted(self, lot: Lot) -> Tensor:
        """What the original says; not in bfloat16, in which it need not say the same twice."""
        with torch.autocast(device_of(self.original).type, enabled=False):
            return answer(self.original, lot.batch)

    def distance(self, p: Tensor, q: Tensor) -> Tensor:
        """Of what the original says and what is learned."""
        p = p.to(q.device)
        return divergence(p, q, self.temperature) if self.kind == "kl" else F.mse_loss(q, p)


class Remembered:
    """What another model said to the same, the largest probabilities of each prediction."""

    def __init__(self, answers: "Answers") -> None:
        self.answers = answers

    def loss(self, model: nn.Module, lot: Lot) -> Tensor:
        """How far what a model says is from it (`far`)."""
        return self.far(answer(model, lot.batch), lot)

    def far(self, q: Tensor, lot: Lot) -> Tensor:
        """The divergence from what is remembered.

        Raises:
            DataError: the examples have no numbers.
        """
        if lot.numbers is None:
            raise DataError("recover: only answers to examples in one tensor are remembered; leave the memory out")
        logs, places = (part.to(q.device) for part in self.answers.of(lot.numbers))
        return coarse(logs, places, q.flatten(0, -2))


@runtime_checkable
class Answers(Protocol):
    """What was said to examples, by their numbers: the logarithms of the largest probabilities, and their classes."""

    def of(self, numbers: Tensor) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]: ...


@torch.no_grad()
def largest(original: nn.Module, batch: Batch, k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The logarithms of the k largest probabilities of all predictions, and their classes."""
    logs = answer(original, batch).flatten(0, -2).log_softmax(-1)
    found = logs.topk(min(k, logs.shape[-1]), -1)
    return found.values, found.indices


def divergence(p: Float[Tensor, "*n v"], q: Float[Tensor, "*n v"], temperature: float) -> Tensor:
    """τ² KL(p ‖ q), both given as logits."""
    a, b = ((part / temperature).log_softmax(-1).flatten(0, -2) for part in (p, q))
    return temperature**2 * F.kl_div(b, a, log_target=True, reduction="batchmean")


def coarse(logs: Float[Tensor, "n k"], places: Int[Tensor, "n k"], q: Float[Tensor, "n v"]) -> Tensor:
    """The KL of two distributions whose classes beyond the k of each prediction are one."""
    own = q.log_softmax(-1).gather(-1, places)
    logs = logs.float()
    rest = (1 - logs.exp().sum(-1)).clamp(LEAST, 1)
    left = (1 - own.exp().sum(-1)).clamp(LEAST, 1)
    known = (logs.exp() * (logs - own)).sum(-1)
    if logs.shape[-1] == q.shape[-1]:
        return known.mean()
    return (known + rest * (rest.log() - left.log())).mean()


def apart(wanted: Tensor, made: Tensor) -> Tensor:
    """How far a hidden output is from another, as a share of that.

    Raises:
        ModelError: they are of different shapes.
    """
    if wanted.shape != made.shape:
        raise ModelError(
            f"recover: a hidden output is {list(wanted.shape)} in the original and {list(made.shape)} in the model; "
            "name modules whose outputs are as wide in both"
        )
    return F.mse_loss(made.float(), wanted.float()) / wanted.float().square().mean().clamp(min=1e-12)


def named(model: nn.Module, wildcards: Sequence[str]) -> list[str]:
    """The names of the modules that wildcards match.

    Raises:
        ModelError: one matches nothing.
    """
    names = [name for name, _ in model.named_modules() if name]
    for card in wildcards:
        if not any(fnmatchcase(name, card) for name in names):
            raise ModelError(f"recover: no module of the original is called {card!r}; some are {', '.join(names[:4])}")
    return [name for name in names if any(fnmatchcase(name, card) for card in wildcards)]


@contextmanager
def outputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules of these names give while the block runs."""
    found: dict[str, Tensor] = {}
    model = model.module if isinstance(model, DistributedDataParallel) else model
    with ExitStack() as stack:
        for name in names:

            def keep(part: nn.Module, given: Any, output: Any, name: str = name) -> None:
                found[name] = said(part, output)

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        yield found


def answer(model: nn.Module, batch: Batch) -> Tensor:
    """What a model says to a batch, in float32."""
    return said(model, call(model, batch)).float()


def target(batch: Batch) -> Tensor:
    """The labels of a batch.

    Raises:
        DataError: it has none.
    """
    if isinstance(batch, tuple) and len(batch) > 1:
        return batch[1]
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in TARGETS if name in batch), None)
        if found is not None:
            return found
    raise DataError("data: there are no labels to learn from; give (inputs, labels), or the original to learn from")


def finite(loss: Tensor | float) -> float:
    """A loss as a number.

    Raises:
        DataError: it is none, from which nothing can be learned.
    """
    found = float(loss)
    if not math.isfinite(found):
        raise DataError(f"recover: the loss has become {found}; give a smaller lr, or data that the model can read")
    return found
