"""Experts of a mixture as layers of their own; transformers keeps all those of a block in two tensors.

On disk they are apart too, under the names that they have here.

Shapes: t tokens, k experts that each is given to, h hidden.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.errors import RecipeError
from lissom.models.families import FAMILIES, put
from lissom.models.layers import linear


class Expert(nn.Module):
    """One expert: a gate, what is gated, and their sum."""

    def __init__(self, gate_up: Tensor, down: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = map(linear, (*gate_up.chunk(2), down))
        self.act_fn = activation

    def forward(self, x: Float[Tensor, "n h"]) -> Float[Tensor, "n h"]:
        """What it says to the tokens that it is given."""
        made: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return made


class Experts(nn.Module):
    """The experts of a block, named by their numbers. No list: none of them can stand for another, or go."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        pairs = zip(fused.get_parameter("gate_up_proj"), fused.get_parameter("down_proj"), strict=True)
        for number, (gate_up, down) in enumerate(pairs):
            self.add_module(str(number), Expert(gate_up, down, fused.act_fn))  # type: ignore[arg-type]
        self.train(fused.training)

    def forward(
        self, x: Float[Tensor, "t h"], chosen: Int[Tensor, "t k"], weights: Float[Tensor, "t k"]
    ) -> Float[Tensor, "t h"]:
        """The weighted sum of what the experts of each token say."""
        y = torch.zeros_like(x)
        for number in chosen.unique().tolist():
            token, place = torch.where(chosen == number)
            said = self.get_submodule(str(number))(x[token]) * weights[token, place, None]
            y.index_add_(0, token, said.to(y.dtype))
        return y


class EveryExpert(nn.Module):
    """The same experts where nothing may hang on which are chosen, as in a graph: each is given every token.

    What those say that were not chosen counts nothing. The sum is the same, and takes as many products as experts.
    """

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        for number, expert in experts.named_children():
            self.add_module(number, expert)
        self.train(experts.training)

    def forward(
        self, x: Float[Tensor, "t h"], chosen: Int[Tensor, "t k"], weights: Float[Tensor, "t k"]
    ) -> Float[Tensor, "t h"]:
        """The weighted sum of what all experts say, in the same order."""
        y = torch.zeros_like(x)
        for number, expert in self.named_children():
            share = (weights * (chosen == int(number))).sum(1, keepdim=True)
            y = y + (expert(x) * share).to(y.dtype)
        return y


def experts_in(model: nn.Module) -> dict[str, nn.Module]:
    """The experts of a language model that transformers keeps together, block by block."""
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    if family is None or not family.experts:
        return {}
    ends = f".{family.experts}"
    return {name: part for name, part in model.named_modules() if name.endswith(ends) and not isinstance(part, Experts)}


def unchosen(model: nn.Module) -> nn.Module:
    """Let every expert be given every token, in place, so that a graph can be made of a model."""
    for name, part in list(model.named_modules()):
        if isinstance(part, Experts):
            put(model, name, EveryExpert(part))
    return model


def check_unrouted(model: nn.Module, names: Iterable[str]) -> None:
    """See that layers are given the same tokens whenever the data runs, so that they can be weighed one by one.

    Raises:
        RecipeError: one is an expert's; the choice of experts may tip with the last bit of a number.
    """
    experts = [f"{name}." for name, part in model.named_modules() if isinstance(part, Experts)]
    for name in names:
        if name.startswith(tuple(experts)):
            raise RecipeError(
                f"recipe: {name} is given other tokens each time the data runs, so that they cannot be weighed one by "
                "one (as yaqa does, and guided); leave experts out of that step, e.g. layers='*self_attn*'"
            )
