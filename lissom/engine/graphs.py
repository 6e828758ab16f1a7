"""Decoding on a GPU: a pass of one token for each sequence, recorded once for each of a few sizes, and played again.

A pass of a small model launches hundreds of kernels that take less time than the launching. So what a pass does is
recorded as a CUDA graph, for which the shapes must be known and all numbers lie where they lay: sequences are filled up
to one of a few sizes, and so are their pages, and what a pass is told is written over what the last was told.

    told    a row for each sequence: its token, the place of that, and its pages

Where nothing can be recorded the same pass is run as it is. Shapes: b sequences, p pages of each, v vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lissom.models.form import LanguageModel

Play = Callable[[], Tensor]
Record = Callable[[Play], Play]
WARMUP = 2  # passes before one is recorded: kernels are chosen and compiled, and the cache's tensors made
FEWEST = 8  # pages


class Steps:
    """Passes of one token for each sequence, each size of them recorded when it first comes.

    `run` makes a pass of what it is told; `spare` is a page that nobody owns, for sequences that are there to fill up.
    """

    def __init__(
        self,
        run: Callable[[Int[Tensor, "b q"]], Float[Tensor, "b v"]],
        *,
        spare: int,
        place: torch.device,
        record: Record,
    ) -> None:
        self._run, self._spare, self._place, self._record = run, spare, place, record
        self._known: dict[tuple[int, int], tuple[Tensor, Play]] = {}

    def logits(
        self, tokens: Sequence[int], places: Sequence[int], pages: Sequence[Sequence[int]]
    ) -> Float[Tensor, "b v"]:
        """The logits after each token; to be used before the next pass, which writes over them."""
        size = sequences_of(len(tokens)), pages_of(max(map(len, pages)))
        rows = [[token, place, *own] for token, place, own in zip(tokens, places, pages, strict=True)]
        filled = [row + [self._spare] * (2 + size[1] - len(row)) for row in rows]
        filled += [[0, 0] + [self._spare] * size[1]] * (size[0] - len(rows))
        now = torch.tensor(filled)
        if size not in self._known:
            told = now.to(self._place, copy=True)
            self._known[size] = told, self._record(lambda: self._run(told))
        told, play = self._known[size]
        told.copy_(now)
        return play()[: len(tokens)]


def sequences_of(count: int) -> int:
    """The size that so many sequences are filled up to: a power of two."""
    return 1 << (count - 1).bit_length()


def pages_of(count: int) -> int:
    """The size that so many pages are filled up to: a power of two, or one and a half."""
    power = 1 << max(count - 1, FEWEST - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 and power > FEWEST else power


def recording(model: LanguageModel) -> Record | None:
    """What records passes of a model; None off a GPU, and where tokens decide what is done, which experts are asked.

    All that it records shares memory, as only one is played at a time.
    """
    if model.device.type != "cuda" or getattr(model.config, "num_experts", None):
        return None
    pool = torch.cuda.graph_pool_handle()

    def record(run: Play) -> Play:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUP):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            made = run()

        def play() -> Tensor:
            graph.replay()
            return made

        return play

    return record
