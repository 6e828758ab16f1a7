"""The memory that hearing what the end loss says takes, foreseen.

    on the way back    the inputs of all blocks + max over parts of ( part + what a lot leaves behind for the way back )
    what is kept       o² for the Fisher matrix, and a weight for each row, of every layer that is heard

with, in float32: a block's layers each leave their input and four times their output, the rest of it 16 hidden states;
the head works on one window, and leaves six times its logits; attention that makes all its scores leaves six times
these. Where hidden states wait on disk, so do Fisher matrices, but for those of one part.
"""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from lissom.calibrate.gradients import NUMBERS, ROWS
from lissom.formats import matrix_of
from lissom.models import Checkpoint, Family, compressible
from lissom.models.families import at

FLOAT = torch.float32.itemsize
OUTPUTS, STATES, LOGITS, STAGES = 4, 16, 6, 6


def waiting(checkpoint: Checkpoint, windows: tuple[int, int], batch: int, spilled: bool) -> int:
    """Bytes of hidden states: the inputs of all blocks, the output of the last, and gradients, old and new."""
    n, t = windows
    config = checkpoint.config
    rows = 4 * min(batch, n) * t if spilled else (config.num_hidden_layers + 3) * n * t
    return FLOAT * int(rows * config.hidden_size)


def way_back(checkpoint: Checkpoint, model: nn.Module, windows: tuple[int, int], batch: int, spilled: bool) -> int:
    """Bytes that the pass back takes, beside the embedding and what it hears."""
    n, t = windows
    config, name = checkpoint.config, f"{checkpoint.family.blocks}.0"
    shapes = [matrix_of(layer).shape for layer in compressible(at(model, name), name).values()]
    left = sum(i + OUTPUTS * o for o, i in shapes) + STATES * config.hidden_size + STAGES * scores(checkpoint, t)
    block = sum(o * i for o, i in shapes) + min(batch, n) * t * left
    head = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    largest = max(block, head + LOGITS * t * config.vocab_size)
    return waiting(checkpoint, windows, batch, spilled) + FLOAT * int(largest)


def scores(checkpoint: Checkpoint, t: int) -> int:
    """Scores of attention for each token of a window; none where PyTorch's attention runs, which never has all."""
    return t * int(checkpoint.config.num_attention_heads) if checkpoint.family.attends_by == "eager" else 0


def kept(family: Family, model: nn.Module, names: Collection[str], rows: int, spilled: bool) -> int:
    """Bytes of what is heard of layers and kept until their turn comes: Fisher matrices and weights of rows."""
    fishers = by_part(family, {name: matrix_of(at(model, name)).shape[0] ** 2 for name in names})
    return FLOAT * (most(fishers) if spilled else sum(fishers)) + FLOAT * rows * len(names)


def judged(checkpoint: Checkpoint, model: nn.Module, names: Collection[str], guided: Collection[str], rows: int) -> int:
    """Bytes of what candidates are judged by, of one part at a time; the head's too where that is the embedding.

    Rows, and what comes of them through what a candidate changes: with its product with the slopes, twice as wide.
    """
    family = checkpoint.family
    held = {name: judges(model, name, name == family.embedding, rows) for name in names}
    beside = judges(model, family.head, False, rows) if checkpoint.config.tie_word_embeddings else 0
    working = 2 * max(beside, most(held.values()))
    made = kept(family, model, guided, 0, True) + FLOAT * rows * len(guided)
    return FLOAT * (most(by_part(family, held)) + beside + working) + made


def judges(model: nn.Module, name: str, looked_up: bool, rows: int) -> int:
    """Numbers in the rows of a layer that its candidates are judged by, and in their slopes."""
    o, i = matrix_of(at(model, name)).shape
    return min(rows, ROWS, NUMBERS // o) * (i + o) if not looked_up else min(rows, ROWS, NUMBERS // i) * (i + 1)


def by_part(family: Family, sizes: Mapping[str, int]) -> list[int]:
    """The sizes of layers summed up for each part of the model."""
    sums: dict[str, int] = {}
    for name, size in sizes.items():
        inside = name.startswith(f"{family.blocks}.")
        part = ".".join(name.split(".")[: family.blocks.count(".") + 2]) if inside else name
        sums[part] = sums.get(part, 0) + size
    return list(sums.values())


def most(sizes: Iterable[int]) -> int:
    """The largest, if there is one."""
    return max(sizes, default=0)
