"""How far a model is from the original on a few examples: what the search compares candidates by.

Where outputs are logits it is KL(original ‖ model), in nats per prediction; else Σ (f - g)² / Σ f², the squared error of
the outputs beside their own square.

Shapes: n examples, p predictions, c classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.calibrate import Batch, call
from lissom.calibrate.data import each
from lissom.compress.layers import said
from lissom.evaluate.examples import evaluating, pieces, tensors

ROOM = 256 * 2**20  # bytes of what the original said
EXAMPLES, TOKENS = 512, 8192  # at most, whichever is fewer


class Distance:
    """What the original says to the examples, remembered; called with a model, how far that is from it."""

    def __init__(self, original: nn.Module, data: Batch, *, logits: bool, at_once: int = 128) -> None:
        self.logits, self.batches, self.every = logits, few(data, original, at_once), 1
        with evaluating(original):
            outputs = [output(original, batch) for batch in self.batches[:1]]
            nbytes = sum(o.nbytes for o in outputs) * len(self.batches)
            self.every = max(1, -(-nbytes // ROOM))
            self.said = [self.kept(output(original, batch)) for batch in self.batches]

    def kept(self, outputs: Tensor) -> Tensor:
        """Some of the predictions, where all would be too many to remember."""
        return outputs.flatten(0, -2)[:: self.every].clone() if self.every > 1 else outputs

    def __call__(self, model: nn.Module) -> float:
        """The distance of a model."""
        total = whole = 0.0
        with evaluating(model):
            for batch, before in zip(self.batches, self.said, strict=True):
                after = self.kept(output(model, batch))
                if self.logits:
                    log_p, log_q = F.log_softmax(before, -1), F.log_softmax(after, -1)
                    total += float(F.kl_div(log_q, log_p, reduction="sum", log_target=True))
                    whole += before[..., 0].numel()
                else:
                    total += float((after - before).square().sum())
                    whole += float(before.square().sum())
        return max(total, 0.0) / max(whole, torch.finfo(torch.float32).tiny)  # rounding may lead below nothing


def few(data: Batch, model: nn.Module, at_once: int) -> list[Batch]:
    """Batches of the first examples."""
    first = tensors(data)[0]
    width = first.shape[1] if first.dim() == 2 and not first.is_floating_point() else 1  # tokens of an example
    count = min(len(first), EXAMPLES, max(1, TOKENS // width))
    return list(pieces(each(data, lambda part: part[:count]), at_once, model))


def output(model: nn.Module, batch: Batch) -> Tensor:
    """What a model says."""
    return said(model, call(model, batch)).float()
