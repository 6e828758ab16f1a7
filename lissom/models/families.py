"""Where the parts of a causal language model are, by the `model_type` of its config."""

from dataclasses import dataclass

from torch import nn

from lissom.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Dotted names of the parts that a streaming pass must find."""

    embedding: str = "model.embed_tokens"
    blocks: str = "model.layers"
    rotary: str = "model.rotary_emb"
    norm: str = "model.norm"
    head: str = "lm_head"


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
}


def family_of(model_type: str) -> Family:
    """The family of a config's `model_type`.

    Raises:
        ModelError: it is not in the table.
    """
    if model_type not in FAMILIES:
        raise ModelError(f"unknown architecture {model_type!r}; language models known are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def at(model: nn.Module, name: str) -> nn.Module:
    """The submodule of a dotted name."""
    return model.get_submodule(name)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
