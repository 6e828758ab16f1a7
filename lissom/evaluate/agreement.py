"""Agreement: how far a compressed model's predictions are from the original's, whatever the labels say.

Shapes: n examples, ... predictions of an example (none for a classifier, positions for a language model), c classes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lissom.calibrate import Batch, call
from lissom.calibrate.data import logits_in
from lissom.errors import DataError

AT_ONCE = 2**24  # logits


def predictions(model: nn.Module, batch: Batch) -> Float[Tensor, "n ... c"]:
    """The logits of whatever is predicted, in the type that they come in.

    Raises:
        DataError: the model's output is none.
    """
    output = call(model, batch)
    logits = logits_in(output)
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        raise DataError(f"agreement: the model gave {type(output).__name__} where logits [..., classes] are needed")
    return logits


def divergence(original: Float[Tensor, "n ... c"], compressed: Float[Tensor, "n ... c"]) -> Float[Tensor, " n"]:
    """KL(original ‖ compressed) = Σ_c p log(p / q) of logits, in nats; the mean over an example's predictions."""
    classes = original.shape[-1]
    rows = max(1, AT_ONCE // classes)  # what is made of logits is several times as large as they
    parts = zip(*(logits.reshape(-1, classes).split(rows) for logits in (original, compressed)), strict=True)
    found = torch.cat([of_rows(p.float().log_softmax(-1), q.float().log_softmax(-1)) for p, q in parts])
    return found.reshape(len(original), -1).mean(1)


def of_rows(log_p: Float[Tensor, "r c"], log_q: Float[Tensor, "r c"]) -> Float[Tensor, " r"]:
    """KL(p ‖ q) of r predictions."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def same_top1(original: Float[Tensor, "n ... c"], compressed: Float[Tensor, "n ... c"]) -> Float[Tensor, " n"]:
    """The share of an example's predictions whose likeliest class is the same."""
    return (original.argmax(-1) == compressed.argmax(-1)).float().reshape(len(original), -1).mean(1)


def closeness(original: Float[Tensor, "n ... c"], compressed: Float[Tensor, "n ... c"]) -> Float[Tensor, " n"]:
    """-KL(original ‖ compressed), a score: 0 is the most."""
    return -divergence(original, compressed)
