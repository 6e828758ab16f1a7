"""The forward pass: slices of sequences in, logits out. The only part of the engine that touches the model.

The model is run by its own code; only its attention is exchanged, and only for the length of a pass. Outside of it
the model is as it was, and can be evaluated or trained.

Shapes: t packed tokens, r tokens after which the logits are wanted, v vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lissom.engine.attention import Chunk, Decoding, Ragged, attend
from lissom.engine.cache import Cache
from lissom.engine.graphs import Record, Steps
from lissom.engine.pages import PAGE, pages_for
from lissom.engine.schedule import Slice
from lissom.errors import ModelError
from lissom.models.form import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "qwen3_moe")
SHIFTING_ROPE = ("dynamic", "longrope")  # their angles depend on the longest sequence of the batch
PAGED = "lissom_paged"


class Runner:
    """Runs a decoder language model over a paged cache.

    With `record` passes of one token for each sequence are recorded, and played again (graphs.py).

    Raises:
        ModelError: a family, or a kind of rotary embedding, that the engine does not know.
        DataError: a kind of cache that there is not.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        pages: int,
        cache: str = "float",
        record: Record | None = None,
    ) -> None:
        from transformers import AttentionInterface

        check(model)
        AttentionInterface.register(PAGED, attend)
        self._model = model
        self._device = model.device
        self._pages, self._cache = pages, Cache(pages + 1, cache)  # one that nobody owns
        self._steps = record and Steps(self._step, spare=pages, place=self._device, record=record)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache of all layers that have written."""
        return self._cache.nbytes * self._pages // (self._pages + 1)

    def forward(self, slices: Sequence[Slice]) -> Float[np.ndarray, "r v"]:
        """Run the slices; return the logits after the last known token of each sequence and after each guess."""
        return self._logits(slices).cpu().numpy()

    def _logits(self, slices: Sequence[Slice]) -> Float[Tensor, "r v"]:
        if self._steps is None or any(piece.count > 1 or len(piece.wanted) != 1 for piece in slices):
            return self._ragged_pass(slices)
        tokens = [piece.sequence.tokens(piece.start, piece.start + 1)[0] for piece in slices]
        held = [piece.sequence.pages[: pages_for(piece.start + 1)] for piece in slices]
        return self._steps.logits(tokens, [piece.start for piece in slices], held)

    def _step(self, told: Int[Tensor, "b q"]) -> Float[Tensor, "b v"]:
        """A pass of one token for each sequence, of numbers that are on the device (graphs.py)."""
        places, table = told[:, 1], told[:, 2:]
        page = table.gather(1, (places // PAGE)[:, None])[:, 0]
        decoding = Decoding(table=table, lengths=places + 1)
        ragged = Ragged(cache=self._cache, slots=page * PAGE + places % PAGE, decoding=decoding, chunks=())
        return self._pass(told[:, 0], places, 0, ragged)

    def _ragged_pass(self, slices: Sequence[Slice]) -> Float[Tensor, "r v"]:
        ordered = sorted(slices, key=lambda piece: piece.count > 1)
        tokens = [token for piece in ordered for token in piece.sequence.tokens(piece.start, piece.start + piece.count)]
        places = [place for piece in ordered for place in range(piece.start, piece.start + piece.count)]
        firsts = accumulate((piece.count for piece in ordered), initial=0)
        first = {id(piece): row for piece, row in zip(ordered, firsts, strict=False)}
        rows = [first[id(piece)] + at for piece in slices for at in piece.wanted]
        return self._pass(self._tensor(tokens), self._tensor(places), self._tensor(rows), self._ragged(ordered))

    def _pass(
        self, tokens: Int[Tensor, " t"], places: Int[Tensor, " t"], rows: Int[Tensor, " r"] | int, ragged: Ragged
    ) -> Float[Tensor, "r v"]:
        """The logits after some of the tokens; after all of them where `rows` is 0."""
        with torch.no_grad(), _paged(self._model):
            out = self._model(
                input_ids=tokens[None],
                position_ids=places[None],
                use_cache=False,
                logits_to_keep=rows,
                ragged=ragged,
            )
        return out.logits[0].float()  # type: ignore[no-any-return]

    def _ragged(self, ordered: Sequence[Slice]) -> Ragged:
        held = [self._slots(piece) for piece in ordered]
        single = [piece for piece in ordered if piece.count == 1]
        chunks = [
            Chunk(start=piece.start, slots=slots) for piece, slots in zip(ordered, held, strict=True) if piece.count > 1
        ]
        return Ragged(
            cache=self._cache,
            slots=torch.cat([slots[piece.start :] for piece, slots in zip(ordered, held, strict=True)]),
            decoding=self._decoding(single) if single else None,
            chunks=tuple(chunks),
        )

    def _decoding(self, single: Sequence[Slice]) -> Decoding:
        longest = max(pages_for(piece.start + 1) for piece in single)
        padded = [(piece.sequence.pages + [0] * longest)[:longest] for piece in single]
        return Decoding(table=self._tensor(padded), lengths=self._tensor([piece.start + 1 for piece in single]))

    def _slots(self, piece: Slice) -> Int[Tensor, " n"]:
        """Where the tokens of the sequence lie, from its first to the last of the slice."""
        inside = torch.arange(PAGE, device=self._device)
        every = self._tensor(piece.sequence.pages)[:, None] * PAGE + inside
        return every.flatten()[: piece.start + piece.count]

    def _tensor(self, values: object) -> Int[Tensor, "..."]:
        return torch.tensor(values, dtype=torch.long, device=self._device)


@contextmanager
def _paged(model: "PreTrainedModel") -> Iterator[None]:
    usual = model.config._attn_implementation
    model.config._attn_implementation = PAGED
    try:
        yield
    finally:
        model.config._attn_implementation = usual


def check(model: LanguageModel) -> None:
    """Whether the engine knows the model.

    Raises:
        ModelError: a family, or a kind of rotary embedding, that the engine does not know.
    """
    family = getattr(model.config, "model_type", type(model).__name__)
    if family not in FAMILIES:
        raise ModelError(f"engine: cannot serve a model of type {family!r}; possible are {', '.join(FAMILIES)}")
    if getattr(model.config, "use_bidirectional_attention", False):
        raise ModelError("engine: a model whose tokens attend to later ones writes no text; give a causal one")
    told = getattr(model.config, "rope_parameters", None) or {}
    for rope in (own.get("rope_type") for own in (told, *told.values()) if isinstance(own, dict)):
        if rope in SHIFTING_ROPE:
            raise ModelError(
                f"engine: rope_type {rope!r} depends on the batch and cannot be served; use default or yarn"
            )
