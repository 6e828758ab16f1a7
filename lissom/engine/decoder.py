"""A decoder language model as a program: what runner.py does in PyTorch, in C.

    h = embedding[token]
    h += o(attention(q(norm h), k(norm h), v(norm h)))       in each block
    h += down(gate(norm h) · up(norm h))
    logits = head(norm h)

Gemma norms what is added as well, and bounds scores and logits. Blocks may differ in width, heads and formats.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.engine.native_runner import NativeRunner
from lissom.engine.operations import (
    GATES,
    Angles,
    Attention,
    Columns,
    Expert,
    Kind,
    Product,
    Router,
    Source,
    outputs,
)
from lissom.engine.passes import Passes
from lissom.engine.program import Program
from lissom.engine.runner import check
from lissom.errors import ModelError
from lissom.models.families import at, family_of
from lissom.models.form import LanguageModel

ROWS = 512  # tokens of a pass; what is between the layers of so many stays near the processor
PASSING = "what one part of a block makes and reads"  # in the same columns as that of the part before
CACHES = {"float": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class Decoder:
    """Puts a model's program together, block by block.

    It runs on the best kernels there are, or on those that are named.

    Raises:
        ModelError: a layer, or an activation, that the library cannot run.
    """

    def __init__(self, model: LanguageModel, *, pages: int, cache: str, kernel: str | None = None) -> None:
        self._model: Any = model
        self._config, self._pages = model.config, pages
        self._family = family_of(model.config.model_type)
        self._dtype = CACHES[cache]
        self._program = Program(ROWS, kernel or native.kernels()[-1], model.dtype)
        self._angles = self._every_angle()

    def program(self) -> Passes:
        """All of it."""
        model, family = self._model, self._family
        embedding, norm = at(model, family.embedding), at(model, family.norm)
        width = len(norm.weight)  # type: ignore[arg-type]
        stream = self._program.matrix(width)
        self._program.embed(embedding, stream)
        blocks = list(at(model, family.blocks).children())
        if not blocks:
            raise ModelError("engine: a model without blocks runs in PyTorch only")
        for block in blocks:
            self._block(block, stream, width, last=block is blocks[-1])
        cap = getattr(self._config, "final_logit_softcapping", None)
        self._program.head(self._normed(norm, stream, width), at(model, family.head), cap)
        return self._program.finish()

    def _block(self, block: Any, stream: Columns, width: int, *, last: bool = False) -> None:
        """Of the last one only its keys and values are wanted of every token, and the rest where logits are."""
        four = bool(self._family.behind)  # norms: before and behind both parts
        before = block.pre_feedforward_layernorm if four else block.post_attention_layernorm
        fed = None if hasattr(block.mlp, "experts") else self._gate(block.mlp)  # first: it is wider, and room is shared
        mixed = self._attend(block.self_attn, self._normed(block.input_layernorm, stream, width))
        if last:
            self._program.pick((stream, width), (mixed.at, mixed.width))
        self._add(block.self_attn.o_proj, mixed, stream, block.post_attention_layernorm if four else None)
        source = self._normed(before, stream, width)
        if fed is None:
            self._ask(block, source, stream)
        else:
            products, gate = fed
            self._program.linear(source, *products)
            self._add(block.mlp.down_proj, gate, stream, block.post_feedforward_layernorm if four else None)

    def _ask(self, block: Any, source: Source, stream: Columns) -> None:
        """A mixture of experts. They read what lies before them until the last has spoken, so that is copied first."""
        names, gate = self._family.experts_of(block), block.mlp.gate
        if not names:
            raise ModelError("engine: experts that are held together run in PyTorch only")
        layer = nn.Linear(source.width, gate.num_experts, bias=False, device="meta")
        layer.weight = nn.Parameter(gate.weight, requires_grad=False)
        router = Router(layer=layer, top=gate.top_k, whole=gate.norm_topk_prob)
        read = self._program.shared("read", source.width)
        self._program.make(source, read)
        experts = list[Expert]()
        for expert in (at(block, name) for name in names):
            products, between = self._gate(expert)
            experts.append(Expert(products=products, between=between, layer=expert.get_submodule("down_proj")))
        self._program.experts(Source(at=read, width=source.width), router, experts, stream)

    def _attend(self, attention: Any, source: Source) -> Source:
        """Queries, keys and values, and what comes of them."""
        size, program = attention.head_dim, self._program
        if hasattr(attention, "qkv_proj"):
            made = outputs(attention.qkv_proj)
            values = self._config.num_key_value_heads * size
            queries = made - 2 * values
            query = self._program.shared(PASSING, made + queries)
            key, value = query.after(queries), query.after(queries + values)
            program.linear(source, Product(attention.qkv_proj, query))
        else:
            queries, values = outputs(attention.q_proj), outputs(attention.k_proj)
            query = self._program.shared(PASSING, 2 * queries + 2 * values)
            key, value = query.after(queries), query.after(queries + values)
            layers = (attention.q_proj, attention.k_proj, attention.v_proj)
            program.linear(source, *(Product(layer, to) for layer, to in zip(layers, (query, key, value), strict=True)))
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        mixed = value.after(values)
        what = Attention(
            query=query,
            key=key,
            value=value,
            to=mixed,
            heads=queries // size,
            groups=values // size,
            size=size,
            scale=attention.scaling,
            query_norm=self._weight(norms[0]),
            key_norm=self._weight(norms[1]),
            eps=0.0 if norms[0] is None else eps(norms[0]),
            window=self._window(attention),
            cap=(self._config.model_type == "gemma2" and attention.attn_logit_softcapping) or 0.0,
        )
        program.attention(what, self._turned_by(attention), self._dtype, self._pages)
        return Source(at=mixed, width=queries)

    def _gate(self, mlp: Any) -> tuple[list[Product], Source]:
        """The layers of a feed-forward part that read the stream, and what its last layer reads."""
        name = getattr(self._config, "hidden_activation", None) or self._config.hidden_act
        if name not in GATES:
            raise ModelError(f"engine: activation {name!r} runs in PyTorch only")
        fused = hasattr(mlp, "gate_up_proj")
        width = outputs(mlp.gate_up_proj) // 2 if fused else outputs(mlp.up_proj)
        gate = self._program.shared(PASSING, 2 * width)
        up = gate.after(width)
        products = (
            [Product(mlp.gate_up_proj, gate)] if fused else [Product(mlp.gate_proj, gate), Product(mlp.up_proj, up)]
        )
        return products, Source(at=up, width=width, kind=Kind.GATED, gate=gate, shape=GATES[name])

    def _add(self, layer: nn.Module, source: Source, stream: Columns, norm: nn.Module | None) -> None:
        """What a part of a block gives, to the stream."""
        if norm is None:
            self._program.linear(source, Product(layer, stream, True))
        else:
            width = outputs(layer)
            added = self._program.shared("added", width)
            self._program.linear(source, Product(layer, added))
            self._program.make(self._normed(norm, added, width), stream, add=True)

    def _normed(self, norm: nn.Module, stream: Columns, width: int) -> Source:
        return Source(at=stream, width=width, kind=Kind.NORMED, weight=self._weight(norm), eps=eps(norm))

    def _weight(self, norm: Any) -> Tensor | None:
        if norm is None:
            return None
        weight: Tensor = norm.weight.detach().float()
        return weight + max(link.offset for link in self._family.links)  # Gemma's norms multiply by 1 + weight

    def _window(self, attention: Any) -> int:
        usual = getattr(self._config, "sliding_window", None)
        return getattr(attention, "sliding_window", usual) or 0

    def _every_angle(self) -> dict[str, Any]:
        """By the type of layer that turns by them; one for all where the model makes no difference."""
        rotary: Any = at(self._model, self._family.rotary)
        kinds = getattr(rotary, "layer_types", None) if not hasattr(rotary, "inv_freq") else None
        prefixes = {"": ""} if kinds is None else {kind: f"{kind}_" for kind in kinds}
        return {
            kind: self._program.angles(
                Angles(
                    frequency=getattr(rotary, f"{prefix}inv_freq"), scale=getattr(rotary, f"{prefix}attention_scaling")
                )
            )
            for kind, prefix in prefixes.items()
        }

    def _turned_by(self, attention: Any) -> Any:
        if not getattr(attention, "use_rope", True):
            return None
        return self._angles.get("") or self._angles[attention.layer_type]


def eps(norm: Any) -> float:
    """What a norm adds to the mean square."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def native_runner(model: LanguageModel, *, pages: int, cache: str) -> "NativeRunner | None":
    """The model as a program, or None where the library, or a part of the model, is not there for it.

    Raises:
        ModelError: a family, or a kind of rotary embedding, that the engine does not know.
    """
    check(model)
    if not native.kernels() or model.device.type != "cpu" or cache not in CACHES:
        return None
    try:
        return NativeRunner(Decoder(model, pages=pages, cache=cache).program())
    except ModelError:
        return None
