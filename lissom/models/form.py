"""The form of a language model: what a decoder's program asks of a model beside its layers, written down once.

A model of transformers brings all of transformers into memory, which takes longer than reading the weights. Of its code
a program needs only what it makes of a config: numbers of each attention, norm and router, and the angles of positions.
With these, and the shapes of the tensors, a `Bare` model has every layer in its place. It cannot be called.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lissom.models.families import at, family_of, put

CONFIG = (
    "model_type",
    "vocab_size",
    "max_position_embeddings",
    "num_key_value_heads",
    "hidden_act",
    "hidden_activation",
    "final_logit_softcapping",
    "sliding_window",
    "rope_parameters",
    "use_bidirectional_attention",
    "tie_word_embeddings",
    "dtype",
)
NUMBERS = (
    *("head_dim", "scaling", "sliding_window", "layer_type", "use_rope", "attn_logit_softcapping"),  # of attention
    *("variance_epsilon", "eps"),  # of a norm
    *("num_experts", "top_k", "norm_topk_prob"),  # of a router
    *("layer_types", "scalar_embed_scale"),  # of what turns by angles, of an embedding
)
ANGLES = ("inv_freq", "attention_scaling")  # the ends of names: they may be there for several types of layers
PLAIN = (nn.Module, nn.Linear, nn.Embedding)  # what a bare model is made of until something better takes its place


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model: one of transformers, or a bare one."""

    config: Any
    generation_config: Any

    @property
    def device(self) -> torch.device:
        """Where it is."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""


def form_of(model: Any) -> dict[str, Any]:
    """The form of a model of transformers, as JSON holds it."""
    config = model.config.to_dict()
    parts = {name: numbers(part) for name, part in model.named_modules() if not isinstance(part, nn.Linear)}
    return {
        "config": {name: config[name] for name in CONFIG if name in config},
        "eos_token_id": model.generation_config.eos_token_id,
        "parts": {name: told for name, told in parts.items() if told},
    }


def numbers(part: nn.Module) -> dict[str, Any]:
    """What is asked of one module."""
    held = {**vars(part), **part._buffers}
    told = {name: held[name] for name in held if name in NUMBERS or (name.endswith(ANGLES) and "original" not in name)}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in told.items()}


class Bare(nn.Module):
    """A language model without code of its own: its layers, on the meta device at first, and what was asked of it.

    Args:
        form: as `form_of` gives it.
        shapes: of all tensors, by name; layers are matrices.
        make: makes the model of transformers, without weights.
    """

    def __init__(
        self, form: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], make: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(**form["config"])
        self.generation_config = SimpleNamespace(eos_token_id=form["eos_token_id"])
        self._make = make
        self._own = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
        embedding = family_of(self.config.model_type).embedding
        with torch.device("meta"):
            for name in self._own:
                shape, bias = shapes[f"{name}.weight"], f"{name}.bias" in shapes
                path, _, own = name.rpartition(".")
                inside(self, path).add_module(own, layer(shape, bias, looks_up=name == embedding))
        in_order(self)
        for name, told in form["parts"].items():
            part = inside(self, name)
            for number, value in told.items():
                setattr(part, number, torch.tensor(value) if number.endswith("inv_freq") else value)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._norm.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._norm.dtype

    @property
    def _norm(self) -> Tensor:
        found: Tensor = at(self, family_of(self.config.model_type).norm).weight  # type: ignore[assignment]
        return found

    def whole(self) -> nn.Module:
        """The model of transformers, of the very same layers; matrices of 16 bits become float32."""
        model = self._make()
        floats = {held: held.detach().float() for held in self.parameters()}  # of a tied one, one
        for name in self._own:
            part = at(self, name)
            if type(part) in PLAIN:
                state = {own: floats[held] for own, held in part.named_parameters()}
                at(model, name).load_state_dict(state, assign=True)
            else:
                put(model, name, part)
        return model.eval()


def in_order(model: nn.Module) -> None:
    """Put the parts of lists in the order of their numbers: names of tensors may come by the alphabet, 10 before 2."""
    for part in model.modules():
        if all(name.isdecimal() for name in part._modules):
            part._modules = dict(sorted(part._modules.items(), key=lambda one: int(one[0])))


def layer(shape: tuple[int, ...], bias: bool, *, looks_up: bool) -> nn.Module:
    """What has a weight of such a shape: an embedding, a linear layer, or a norm."""
    if looks_up:
        empty = torch.empty(shape)  # given, since PyTorch takes a second to draw values, even for none
        return nn.Embedding(shape[0], shape[1], _weight=empty)
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=bias)
    norm = nn.Module()
    norm.weight = nn.Parameter(torch.empty(shape))
    return norm


def inside(model: nn.Module, name: str) -> nn.Module:
    """The submodule of a dotted name, made of modules without code where there is none."""
    for step in filter(None, name.split(".")):
        if step not in model._modules:
            model.add_module(step, nn.Module())
        model = model.get_submodule(step)
    return model
