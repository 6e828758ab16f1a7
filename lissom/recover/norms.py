"""Batch norms: whether they take the statistics of each batch while a model learns, or keep those that they have.

Weights of few bits change how large the outputs of their layer are, and so what a norm behind it is to subtract and to
divide by: of ResNet-20 with weights of one bit the statistics of a batch say at once more than half of what was lost.
Where layers say nearly what they said, or were fitted to what the norms remember, as channel pruning does, a batch
knows less than those do (docs/log.md). Whichever is nearer to what is to be learned, before anything is, stays.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lissom.compress.layers import evaluating
from lissom.recover.feed import Lot, size
from lissom.recover.lessons import Lesson


def batches_are_better(model: nn.Module, lesson: Lesson, held: Sequence[Lot]) -> bool:
    """Whether a model is nearer to what is to be learned with the statistics of each batch; it stays as it is."""
    lots = [lot for lot in held if size(lot.batch) > 1]  # one example has no spread
    if not lots or not any(isinstance(part, _BatchNorm) for part in model.modules()):
        return False
    tried = copy.deepcopy(model)
    with evaluating(tried):
        remembered = loss(tried, lesson, lots)
        for part in tried.modules():
            if isinstance(part, _BatchNorm):
                part.train()
        return loss(tried, lesson, lots) < remembered


@torch.no_grad()
def loss(model: nn.Module, lesson: Lesson, lots: Sequence[Lot]) -> float:
    """The mean over all examples."""
    found = sum(size(lot.batch) * float(lesson.loss(model, lot)) for lot in lots)
    return found / sum(size(lot.batch) for lot in lots)
