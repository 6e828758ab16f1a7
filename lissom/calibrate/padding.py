"""Padding: batches of texts, each as wide as its own longest, brought to one width.

What is added is where `attention_mask` is 0, at the end of the texts or, where they are padded there, before them.

Shapes: n texts, t tokens of a batch's longest.
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from lissom.calibrate.data import TARGETS

MASK = "attention_mask"
IGNORED = -100  # the target of a token that counts for nothing, as in torch and transformers


def padded(batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Batches with an `attention_mask` (..., t), all as wide as the widest: so is every tensor as wide as the mask."""
    width = max(batch[MASK].shape[-1] for batch in batches)
    wide = [
        name
        for name in batches[0]
        if all(name in batch and batch[name].shape[-1:] == batch[MASK].shape[-1:] for batch in batches)
    ]
    before = any(bool((batch[MASK][..., 0] < batch[MASK][..., -1]).any()) for batch in batches)
    fill = {name: filler(name, batches) for name in wide}

    def whole(name: str, part: Tensor) -> Tensor:
        added = width - part.shape[-1] if name in fill else 0
        return F.pad(part, (added, 0) if before else (0, added), value=fill[name]) if added else part

    return [{name: whole(name, part) for name, part in batch.items()} for batch in batches]


def filler(name: str, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """What a tensor is padded with: what it is padded with already, if it is anywhere."""
    if name == MASK:
        return 0
    if name in TARGETS:
        return IGNORED
    for batch in batches:
        there = batch[name][batch[MASK] == 0] if batch[name].shape == batch[MASK].shape else batch[name][:0]
        if there.numel():
            return float(there.flatten()[0])
    return 0
