"""Loads: what each layer is given in what is timed of a model, call by call; costs are computed from it.

What is no layer (norms, attention, activations) is in no load: it is the same in whatever form the layers are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lissom.calibrate import Batch, call
from lissom.formats import CompressedEmbedding
from lissom.models import Checkpoint, compressible, weight_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """So many calls of a layer with so many rows each, of a mixture's expert on the average; or rows looked up."""

    rows: float
    calls: float = 1.0
    looks_up: bool = False


Load = Mapping[str, Sequence[Use]]  # by the part of what is timed
Loads = Mapping[str, Load]  # by the layer


def loads_of_module(model: nn.Module, example: Batch) -> Loads:
    """What the layers of a module are given in one forward pass."""
    found: dict[str, list[Use]] = {}

    def seen(name: str, layer: nn.Module, y: Tensor) -> None:
        looks_up = isinstance(layer, nn.Embedding | CompressedEmbedding)
        outputs = y.shape[-1] if looks_up else weight_of(layer).shape[0]
        found.setdefault(name, []).append(Use(rows=y.numel() / outputs, looks_up=looks_up))

    handles = [
        layer.register_forward_hook(lambda layer, x, y, name=name: seen(name, layer, y))
        for name, layer in compressible(model).items()
    ]
    try:
        with torch.inference_mode():
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: {"call": uses} for name, uses in found.items()}


def loads_of_answer(checkpoint: Checkpoint, names: Sequence[str], prompt: int, written: int) -> Loads:
    """What the layers of a language model are given in an answer: a prompt read, and tokens written one at a time."""
    family, config = checkpoint.family, checkpoint.config

    def load(name: str) -> Load:
        if name == family.embedding:
            head = load_of_head(written) if config.tie_word_embeddings else {}
            own = {"prefill": Use(rows=prompt, looks_up=True), "decode": Use(rows=1, calls=written, looks_up=True)}
            return {part: [use, *head.get(part, ())] for part, use in own.items()}
        if name == family.head:
            return load_of_head(written)
        share = share_of(name, family.experts, config)
        met = 1 - (1 - share) ** prompt  # how likely any of the prompt's tokens comes here
        return {
            "prefill": [Use(rows=prompt * share / met, calls=met)],
            "decode": [Use(rows=1, calls=written * share)],
        }

    return {name: load(name) for name in names}


def load_of_head(written: int) -> dict[str, list[Use]]:
    """What the head is given: the last token of the prompt, and each that is written."""
    return {"prefill": [Use(rows=1)], "decode": [Use(rows=1, calls=written)]}


def share_of(name: str, experts: str, config: Any) -> float:
    """The share of tokens that a layer is given: all, but of an expert as many as choose it if none is preferred."""
    if not experts or f".{experts}." not in name:
        return 1.0
    return float(config.num_experts_per_tok / config.num_experts)
