"""Where the parts of a causal language model are, by the `model_type` of its config."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lissom.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Layers coupled by the channels that some make and others read, and nobody else; dotted names.

    `unit` is empty where each channel goes its own way, on which only its size may change. Otherwise it names the
    attribute that says how many channels attention sums as one head; with grouped queries, each head is read by several
    consecutive heads of the reader. A maker's weight w counts as w + `offset`, as in norms that multiply by 1 + w. A
    maker that is `fused` of several layers makes the channels with the last of them.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    unit: str = ""
    offset: float = 0.0
    fused: int = 1

    def inside(self, part: str) -> "Link":
        """The same link of a part, by its full names."""
        makers, readers = (tuple(f"{part}.{name}" for name in names) for names in (self.makers, self.readers))
        return replace(self, makers=makers, readers=readers, unit=f"{part}.{self.unit}" if self.unit else "")


QUERIES_KEYS_VALUES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
INSIDE = (
    Link(makers=("self_attn.v_proj",), readers=("self_attn.o_proj",), unit="self_attn.head_dim"),
    Link(makers=("mlp.up_proj",), readers=("mlp.down_proj",)),
)
LINKS = (
    Link(makers=("input_layernorm",), readers=QUERIES_KEYS_VALUES),
    Link(makers=("post_attention_layernorm",), readers=GATE_UP),
    *INSIDE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Dotted names of the parts that a streaming pass must find, and of those of a block; how its layers are linked."""

    embedding: str = "model.embed_tokens"
    blocks: str = "model.layers"
    rotary: str = "model.rotary_emb"
    norm: str = "model.norm"
    head: str = "lm_head"
    links: tuple[Link, ...] = LINKS
    attention: str = "self_attn"
    heads: tuple[str, ...] = QUERIES_KEYS_VALUES  # make them (one layer: fused of three),
    mixes: str = "self_attn.o_proj"  # reads them
    neurons: tuple[str, ...] = GATE_UP  # (one layer: fused of two)
    sums: str = "mlp.down_proj"
    behind: tuple[str, ...] = ()  # norms of what is written to the residual stream
    attends_by: str = "sdpa"  # how transformers computes its attention outside of the engine
    experts: str = ""  # in blocks that have several layers for each of `neurons` and `sums`, and
    router: str = ""  # what chooses among them

    def feeds(self, block: nn.Module) -> list[tuple[tuple[str, ...], str]]:
        """What makes the neurons of a block and what sums them: once, or for each of its experts."""
        experts = self.experts_of(block)
        if not experts:
            return [(self.neurons, self.sums)]
        return [(within(one, self.neurons), within(one, (self.sums,))[0]) for one in experts]

    def linked(self, block: nn.Module) -> list[Link]:
        """The links of a block."""
        experts = self.experts_of(block)
        return [one for link in self.links for one in (self.among(experts, link) if experts else [link])]

    def among(self, experts: Sequence[str], link: Link) -> list[Link]:
        """What becomes of a link where there are experts: they all read one norm, and so does what chooses them."""
        if link.makers[0] in self.neurons:
            both = [(within(one, link.makers), within(one, link.readers)) for one in experts]
            return [replace(link, makers=makers, readers=readers) for makers, readers in both]
        if link.readers[0] in self.neurons:
            every = (name for one in experts for name in within(one, link.readers))
            return [replace(link, readers=(self.router, *every))]
        return [link]

    def experts_of(self, block: nn.Module) -> list[str]:
        """The names of a block's experts, if it has any, and has them apart."""
        found = dict(block.named_modules()).get(self.experts) if self.experts else None
        numbers = [] if found is None else [own for own, _ in found.named_children() if own.isdigit()]
        return [f"{self.experts}.{number}" for number in numbers]


def within(expert: str, layers: tuple[str, ...]) -> tuple[str, ...]:
    """The layers of an expert that do what these do in a block without."""
    return tuple(f"{expert}.{layer.rpartition('.')[2]}" for layer in layers)


PHI3 = Family(
    links=(
        Link(makers=("input_layernorm",), readers=("self_attn.qkv_proj",)),
        Link(makers=("self_attn.qkv_proj",), readers=("self_attn.o_proj",), unit="self_attn.head_dim", fused=3),
        Link(makers=("post_attention_layernorm",), readers=("mlp.gate_up_proj",)),
        Link(makers=("mlp.gate_up_proj",), readers=("mlp.down_proj",), fused=2),
    ),
    heads=("self_attn.qkv_proj",),
    neurons=("mlp.gate_up_proj",),
)
GEMMA = Family(
    links=(
        Link(makers=("input_layernorm",), readers=QUERIES_KEYS_VALUES, offset=1.0),
        Link(makers=("pre_feedforward_layernorm",), readers=GATE_UP, offset=1.0),
        *INSIDE,
    ),
    behind=("post_attention_layernorm", "post_feedforward_layernorm"),
)

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma2": replace(GEMMA, attends_by="eager"),  # PyTorch's attention does not bend scores
    "gemma3_text": GEMMA,
    "phi3": PHI3,
    "smollm3": Family(),
    "qwen3_moe": Family(experts="mlp.experts", router="mlp.gate"),
}


def family_of(model_type: str) -> Family:
    """The family of a config's `model_type`.

    Raises:
        ModelError: it is not in the table.
    """
    if model_type not in FAMILIES:
        raise ModelError(f"unknown architecture {model_type!r}; language models known are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def fused_sizes(rows: int, inputs: int, fused: int) -> list[int]:
    """The rows of each of the layers that one is fused of, whose reader has so many inputs.

    That is how many queries, or gates, the first has; the others (keys and values, or what is gated) are alike.
    """
    return [rows] if fused == 1 else [inputs, *[(rows - inputs) // (fused - 1)] * (fused - 1)]


def at(model: nn.Module, name: str) -> nn.Module:
    """The submodule of a dotted name."""
    return model.get_submodule(name)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


BY_BLOCK = ("layer_types", "no_rope_layers")  # what a config may list, block by block


def counted(config: Any, stay: Sequence[int]) -> dict[str, Any]:
    """What a config says of its blocks when only these stay."""
    count: dict[str, Any] = {"num_hidden_layers": len(stay)}
    lists = {name: getattr(config, name, None) for name in BY_BLOCK}
    count |= {name: [found[number] for number in stay] for name, found in lists.items() if found}
    return count | (sparse(config, stay) if hasattr(config, "mlp_only_layers") else {})


def sparse(config: Any, stay: Sequence[int]) -> dict[str, Any]:
    """How a config says which blocks have experts when only these stay."""
    dense = {old for old in stay if old in config.mlp_only_layers or (old + 1) % config.decoder_sparse_step}
    return {"mlp_only_layers": [new for new, old in enumerate(stay) if old in dense], "decoder_sparse_step": 1}
