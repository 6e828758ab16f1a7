"""A text encoder as a program: what its blocks do in PyTorch, in C, and only for the tokens that are no padding.

    h = norm(words + positions + types)
    h = norm(h + o(attention(q h, k h, v h)))       in each block; tokens see all others of their sequence
    h = norm(h + down(act(up h)))

A token's integers share a scale where the weights of a row do: Yao et al., ZeroQuant, NeurIPS 2022, arXiv:2206.01861,
section 3.1, of encoders of this kind.

The pooler stays in PyTorch. Blocks may differ in heads, width and formats.

Shapes: n sequences, t tokens of each with padding, h hidden, r tokens that are no padding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.engine.kernels.layer import KernelEmbedding
from lissom.engine.kernels.panels import PanelLinear
from lissom.engine.operations import GATES, By, Kind, Product, Source, Whole, outputs
from lissom.engine.program import Program
from lissom.engine.stand_in import StandIn, stand_in
from lissom.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

FAMILIES = ("bert", "camembert", "roberta", "xlm-roberta")
ROWS = 256  # tokens of a pass for each thread, if no sequence is longer: those of so many stay near the processor


def native_encoders(model: nn.Module) -> nn.Module:
    """Let the text encoders in a model run as programs, or the model that is one: those that have lowered layers."""
    return stand_in(model, native_encoder)


def native_encoder(model: Any) -> "NativeEncoder | None":
    """A text encoder as a program, or None where it is none, or the library, or a part of it, is not there for it."""
    config: Any = getattr(model, "config", None)
    known = getattr(config, "model_type", None) in FAMILIES and hasattr(model, "encoder") and not config.is_decoder
    lowered = known and any(isinstance(layer, PanelLinear) for layer in model.encoder.modules())
    if not native.kernels() or not lowered:
        return None
    try:
        return NativeEncoder(model)
    except ModelError:
        return None


class NativeEncoder(StandIn):
    """A text encoder; what a program does not know it does in PyTorch, and it has all attributes of the original.

    Raises:
        ModelError: a layer, or an activation, that the library cannot run.
    """

    def __init__(self, model: Any, kernel: str | None = None) -> None:
        super().__init__(model)
        self._kernel = kernel or native.kernels()[-1]
        for layer in model.encoder.modules():
            if isinstance(layer, PanelLinear):
                layer.merge()
        self._idle = [Blocks(model, most(), self._kernel)]  # each thread that calls has its own

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NativeEncoder":
        self._idle = []
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "n t"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "n t"] | None = None,
        position_ids: Int[Tensor, "_ t"] | None = None,
        **others: Any,
    ) -> "BaseModelOutputWithPoolingAndCrossAttentions":
        """The hidden states after the last block, 0 where there is padding, and what the pooler makes of them."""
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        if input_ids is None or self._asks_more(input_ids, attention_mask, others):
            return self.model(input_ids, attention_mask, token_type_ids, position_ids, **others)  # type: ignore[no-any-return]
        last = self._run(input_ids, attention_mask, token_type_ids, position_ids)
        pooled = None if self.model.pooler is None else self.model.pooler(last)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=last, pooler_output=pooled)

    def _asks_more(self, ids: Tensor, mask: Tensor | None, others: Mapping[str, Any]) -> bool:
        """Whether something else than the last hidden states is wanted, or something else is seen."""
        config: Any = self.model.config
        more = any(value is not None and value is not False for name, value in others.items() if name != "return_dict")
        return bool(
            more
            or self.training
            or ids.device.type != "cpu"
            or (mask is not None and mask.shape != ids.shape)
            or not others.get("return_dict", config.return_dict)
            or config.output_hidden_states
            or config.output_attentions
        )

    @torch.no_grad()
    def _run(
        self, ids: Int[Tensor, "n t"], mask: Tensor | None, types: Tensor | None, places: Tensor | None
    ) -> Float[Tensor, "n t h"]:
        tables: Any = self.model.embeddings
        n, t = ids.shape
        if places is None and hasattr(tables, "create_position_ids_from_input_ids"):  # the families of RoBERTa
            places = tables.create_position_ids_from_input_ids(ids, tables.padding_idx)
        types = torch.zeros(1, 1, dtype=torch.long) if types is None else types
        places = torch.arange(t) if places is None else places
        real = None if mask is None or mask.all() else mask.bool()
        lengths = [t] * n if real is None else [length for length in real.sum(1).tolist() if length]
        indices = [(each.expand(n, t) if real is None else each.expand(n, t)[real]) for each in (ids, places, types)]
        try:
            blocks = self._idle.pop()
        except IndexError:  # other threads have all that there are
            blocks = Blocks(self.model, most(), self._kernel)
        if max(lengths, default=0) > blocks.rows:
            blocks = Blocks(self.model, max(lengths), self._kernel)
        numbers, begin = blocks.numbers(*indices), 0
        made = torch.empty(sum(lengths), blocks.width, dtype=self.model.dtype)
        for counts in cut(lengths, blocks.rows):
            which = slice(begin, begin + sum(counts))
            made[which] = blocks.run(counts, *(each[which] for each in numbers))
            begin = which.stop
        self._idle.append(blocks)
        if real is None:
            return made.view(n, t, -1)
        return made.new_zeros(n, t, blocks.width).masked_scatter(real.unsqueeze(-1), made)


def most() -> int:
    """Tokens of a pass, if no sequence is longer."""
    return ROWS * torch.get_num_threads()


class Blocks:
    """A text encoder without its pooler, as a program for at most `rows` tokens."""

    def __init__(self, model: Any, rows: int, kernel: str) -> None:
        self.rows, self._config = rows, model.config
        self._program = Program(rows, kernel, model.dtype, beside_torch=True)
        layers = list(model.encoder.layer)
        self.width = outputs(layers[0].output.dense)
        self._stream = self._program.matrix(self.width)
        self._heads = self._program.matrix(4 * max(outputs(layer.attention.self.query) for layer in layers))
        self._hidden = self._program.matrix(max(outputs(layer.intermediate.dense) for layer in layers))
        self._embed(model.embeddings)
        for layer in layers:
            self._attend(layer.attention)
            self._feed(layer)
        self._passes = self._program.finish()

    def numbers(self, *indices: Int[Tensor, "*r"]) -> list[Int32[np.ndarray, " r"]]:
        """Tokens, places and types as the program reads them.

        Raises:
            DataError: a table has no such row.
        """
        for index, size, name in zip(indices, self._sizes, ("tokens", "positions", "types"), strict=True):
            low, high = map(int, index.aminmax()) if index.numel() else (0, 0)
            if not 0 <= low <= high < size:
                raise DataError(f"engine: {name} {low} to {high} were given; possible are 0 to {size - 1}")
        return [index.to(torch.int32).flatten().numpy() for index in indices]

    def run(self, counts: Sequence[int], *numbers: Int32[np.ndarray, " r"]) -> Float[Tensor, "r h"]:
        """Sequences of so many tokens each, one after the other; what is given is overwritten by the next pass."""
        self._passes.encode(counts, *numbers)
        return self._stream.matrix[: sum(counts)]

    def _embed(self, tables: Any) -> None:
        each = (tables.word_embeddings, tables.position_embeddings, tables.token_type_embeddings)
        self._sizes = [
            table.layer.shape[0] if isinstance(table, KernelEmbedding) else len(table.weight) for table in each
        ]
        self._program.embed(each[0], self._stream)
        row = self._program.shared("row", self.width)
        for table, by in ((each[1], By.PLACE), (each[2], By.TYPE)):
            self._program.embed(table, row, by)
            self._program.make(Source(at=row, width=self.width), self._stream, add=True)
        self._norm(tables.LayerNorm)

    def _attend(self, attention: Any) -> None:
        own = attention.self
        width, size = outputs(own.query), own.attention_head_size
        query, key, value, mixed = (self._heads.after(part * width) for part in range(4))
        layers = ((own.query, query), (own.key, key), (own.value, value))
        self._program.linear(self._given(), *(Product(layer, to) for layer, to in layers))
        what = Whole(query=query, key=key, value=value, to=mixed, heads=width // size, size=size, scale=own.scaling)
        self._program.whole(what)
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
        self._norm(last.LayerNorm)

    def _norm(self, norm: Any) -> None:
        normed = replace(self._given(), kind=Kind.CENTRED, weight=norm.weight, bias=norm.bias, eps=norm.eps)
        self._program.make(normed, self._stream)

    def _given(self) -> Source:
        return Source(at=self._stream, width=self.width)


def height(table: Any) -> int:
    """Rows of an embedding."""
    return table.layer.out_features if isinstance(table, KernelEmbedding) else len(table.weight)


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
