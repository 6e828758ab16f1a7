"""A text encoder as a program: what its blocks do in PyTorch, in C, and only for the tokens that are no padding.

    h = norm(h + o(attention(q h, k h, v h)))       in each block; tokens see all others of their sequence
    h = norm(h + down(act(up h)))

Embeddings and poolers stay in PyTorch. Blocks may differ in heads, width and formats.

Shapes: n sequences, t tokens of each with padding, h hidden, r tokens that are no padding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.operations import GATES, Attention, Kind, Part, Product, Source, outputs
from lissom.engine.pages import pages_for
from lissom.engine.program import Program
from lissom.errors import ModelError

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

FAMILIES = ("bert", "camembert", "roberta", "xlm-roberta")
PAIRS = (
    "avx512bf16"  # kernels whose products of bfloat16 are the fastest; keys and values are kept as what is multiplied
)
ROWS = 256  # tokens of a pass, if no sequence is longer; what is between the layers of so many stays near the processor


def native_encoders(model: nn.Module) -> nn.Module:
    """Let the text encoders in a model run as programs, in place: those that have lowered layers."""
    for part in list(model.modules()):
        if getattr(getattr(part, "config", None), "model_type", None) in FAMILIES and hasattr(part, "encoder"):
            part.encoder = native_encoder(part.encoder) or part.encoder
    return model


def native_encoder(encoder: Any) -> "NativeEncoder | None":
    """The blocks as a program, or None where the library, or a part of them, is not there for it."""
    lowered = any(isinstance(layer, PanelLinear) for layer in encoder.modules())
    if not native.kernels() or not lowered or encoder.config.is_decoder:
        return None
    try:
        return NativeEncoder(encoder)
    except ModelError:
        return None


class NativeEncoder(nn.Module):
    """The blocks of a text encoder; what a program does not know they do in PyTorch.

    Raises:
        ModelError: a layer, or an activation, that the library cannot run.
    """

    def __init__(self, encoder: nn.Module, kernel: str | None = None) -> None:
        super().__init__()
        self.encoder, self._kernel = encoder, kernel or native.kernels()[-1]
        self.training = encoder.training
        self._idle = [Blocks(encoder, ROWS, self._kernel)]  # each thread that calls has its own

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NativeEncoder":
        self._idle = []
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(
        self, hidden_states: Float[Tensor, "n t h"], attention_mask: Tensor | None = None, **others: Any
    ) -> "BaseModelOutputWithPastAndCrossAttentions":
        """The hidden states after the last block; 0 where there is padding."""
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        real = real_tokens(hidden_states, attention_mask)
        if real is None or self._asks_more(others) or self.training or hidden_states.device.type != "cpu":
            found: BaseModelOutputWithPastAndCrossAttentions = self.encoder(hidden_states, attention_mask, **others)
            return found
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self._run(hidden_states.detach(), real))

    def _asks_more(self, others: Mapping[str, Any]) -> bool:
        """Whether something else than the last hidden states is wanted, or something else is seen."""
        config: Any = self.encoder.config
        given = {name for name, value in others.items() if value is not None and value is not False}
        return bool(given - {"position_ids"} or config.output_hidden_states or config.output_attentions)

    def _run(self, hidden: Float[Tensor, "n t h"], real: Bool[Tensor, "n t"]) -> Float[Tensor, "n t h"]:
        lengths = [length for length in real.sum(1).tolist() if length]
        rows, where = hidden.flatten(0, 1), real.flatten().nonzero().squeeze(1)
        made, begin = torch.zeros_like(rows), 0
        blocks = self._idle.pop() if self._idle else Blocks(self.encoder, ROWS, self._kernel)
        if max(lengths, default=0) > blocks.rows:
            blocks = Blocks(self.encoder, max(lengths), self._kernel)
        for counts in cut(lengths, ROWS):
            end = begin + sum(counts)
            which = slice(begin, end) if len(where) == len(rows) else where[begin:end]
            made[which] = blocks.run(rows[which], counts).to(made.dtype)
            begin = end
        self._idle.append(blocks)
        return made.view_as(hidden)


class Blocks:
    """The blocks of an encoder as a program for at most `rows` tokens."""

    def __init__(self, encoder: Any, rows: int, kernel: str) -> None:
        self.rows, self._program, self._config = rows, Program(rows, kernel, beside_torch=True), encoder.config
        self._dtype = torch.bfloat16 if kernel == PAIRS else torch.float32
        layers = list(encoder.layer)
        self._width = outputs(layers[0].output.dense)
        self._stream = self._program.matrix(self._width)
        self._heads = self._program.matrix(4 * max(outputs(layer.attention.self.query) for layer in layers))
        self._hidden = self._program.matrix(max(outputs(layer.intermediate.dense) for layer in layers))
        for layer in layers:
            self._attend(layer.attention)
            self._feed(layer)
        self._program.finish()

    def run(self, rows: Float[Tensor, "r h"], counts: Sequence[int]) -> Float[Tensor, "r h"]:
        """Sequences of so many tokens each, one after the other; what is given is overwritten by the next pass."""
        parts, page = list[Part](), 0
        for count in counts:
            parts.append(Part(range(count), 0, range(page, page + pages_for(count))))
            page += pages_for(count)
        given = self._stream.matrix[: len(rows)]
        given.copy_(rows)
        self._program.run(parts, [])
        return given

    def _attend(self, attention: Any) -> None:
        own = attention.self
        width, size = outputs(own.query), own.attention_head_size
        query, key, value, mixed = (self._heads.after(part * width) for part in range(4))
        layers = ((own.query, query), (own.key, key), (own.value, value))
        self._program.linear(self._given(), *(Product(layer, to) for layer, to in layers))
        what = Attention(
            query=query,
            key=key,
            value=value,
            to=mixed,
            heads=width // size,
            groups=width // size,
            size=size,
            scale=own.scaling,
            both=True,
        )
        self._program.attention(what, None, self._dtype, self.rows)
        self._add(attention.output, Source(at=mixed, width=width))

    def _feed(self, layer: Any) -> None:
        name = self._config.hidden_act
        if name not in GATES:
            raise ModelError(f"engine: activation {name!r} runs in PyTorch only")
        self._program.linear(self._given(), Product(layer.intermediate.dense, self._hidden))
        width = outputs(layer.intermediate.dense)
        self._add(layer.output, Source(at=self._hidden, width=width, kind=Kind.ACTIVE, shape=GATES[name]))

    def _add(self, last: Any, source: Source) -> None:
        """What the last layer of a part gives, to what the part was given; and that normed."""
        self._program.linear(source, Product(last.dense, self._stream, True))
        norm = last.LayerNorm
        normed = replace(self._given(), kind=Kind.CENTRED, weight=norm.weight, bias=norm.bias, eps=norm.eps)
        self._program.make(normed, self._stream)

    def _given(self) -> Source:
        return Source(at=self._stream, width=self._width)


def real_tokens(hidden: Float[Tensor, "n t h"], mask: Tensor | None) -> Bool[Tensor, "n t"] | None:
    """Which tokens are no padding, or None where the mask says more than that."""
    n, t = hidden.shape[:2]
    if mask is None:
        return torch.ones(n, t, dtype=torch.bool)
    if mask.dtype != torch.bool or mask.shape != (n, 1, t, t) or not torch.equal(mask, mask[:, :, :1].expand_as(mask)):
        return None
    return mask[:, 0, 0]


def cut(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """The lengths in order, in passes of at most so many tokens; what is longer is a pass of its own."""
    taken = list[int]()
    for length in lengths:
        if taken and sum(taken) + length > rows:
            yield taken
            taken = []
        taken.append(length)
    if taken:
        yield taken
