"""Activations that are computed again on the way back rather than kept: less memory, and each block runs twice.

Chen, Xu, Zhang, Guestrin, 2016, arXiv:1604.06174, section 4: of each block only its input is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from lissom.errors import ModelError


@contextmanager
def checkpointed(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within the block the activations inside the model's blocks are not kept.

    Raises:
        ModelError: the model has no blocks.
    """
    found = blocks(model) if wanted else []
    for block in found:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in found:
            del block.forward


def blocks(model: nn.Module) -> list[nn.Module]:
    """The children of the largest list or sequence in it, by parameters.

    Raises:
        ModelError: it has none.
    """
    several = [part for part in model.modules() if isinstance(part, nn.ModuleList | nn.Sequential) and len(part) > 1]
    if not several:
        raise ModelError(
            f"recover: {type(model).__name__} has no torch.nn.Sequential or ModuleList of blocks whose activations "
            "could be computed again; leave out checkpointing, and accumulate gradients of smaller batches"
        )
    largest = max(several, key=lambda part: sum(p.numel() for p in part.parameters()))
    return list(largest.children())
