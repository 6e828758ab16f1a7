"""Language models: how likely they find the text.

A text is tokenized without special tokens and cut into windows, and each window is scored from its second token on.

Shapes: n windows, t tokens of a window, s = t - 1 of them predicted, v vocabulary.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.errors import DataError


def predict(model: nn.Module, batch: Batch) -> Float[Tensor, "n s v"]:
    """The logits of every next token within the windows, of a transformers causal language model, in its own type.

    Raises:
        DataError: the batch is no tensor of token windows.
    """
    logits: Tensor = model(input_ids=windows(batch)[:, :-1], use_cache=False).logits
    return logits


def log_likelihood(logits: Float[Tensor, "n s v"], batch: Batch) -> Float[Tensor, " n"]:
    """The mean log probability of the tokens of each window, in nats."""
    pairs = zip(logits, windows(batch)[:, 1:], strict=True)  # one by one: what is made of logits is as large as they
    return -torch.stack([F.cross_entropy(own.float(), tokens, reduction="none").mean() for own, tokens in pairs])


def windows(batch: Batch) -> Int[Tensor, "n t"]:
    """The token windows that a batch of text is."""
    if not isinstance(batch, Tensor) or batch.ndim != 2 or batch.shape[1] < 2 or batch.is_floating_point():
        raise DataError(
            "perplexity: give windows of tokens, an integer tensor [windows, tokens], as token_windows does"
        )
    return batch
