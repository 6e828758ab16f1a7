"""The first blocks of a large language model, in which it is measured what a form adds to the time of a layer.

All blocks do the same work, so a few tell it as all of them would, in less time and less memory: as many as have every
kind of layer and, with what is outside of them, more weights than most caches hold.
"""

from collections import Counter
from collections.abc import Mapping

from lissom.models import Checkpoint

ENOUGH = 256_000_000  # weights, a byte each in the base: those of a step stay in few caches until the next


def enough(checkpoint: Checkpoint, kinds: Mapping[str, str]) -> int:
    """How many of the first blocks; `kinds` are those of the layers, by name."""
    sizes: Counter[int | None] = Counter()
    for name in checkpoint.names:
        sizes[checkpoint.block_of(name)] += checkpoint.tensor(name).numel()
    first: dict[str, int] = {}
    for name, kind in kinds.items():
        first[kind] = min(first.get(kind, checkpoint.config.num_hidden_layers), checkpoint.block_of(name) or 0)
    count, weights = 0, sizes[None]
    while count < checkpoint.config.num_hidden_layers and (weights < ENOUGH or count <= max(first.values())):
        weights += sizes[count]
        count += 1
    return count
