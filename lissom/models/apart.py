"""Matrices that a model keeps in other ways, set apart as layers of torch.nn, which is what can be compressed."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lissom.models.experts import Experts, experts_in
from lissom.models.families import put
from lissom.models.layers import linear
from lissom.models.multihead import Attention

Split = Callable[[nn.Module], nn.Module]


def apart(model: nn.Module) -> nn.Module:
    """Set apart, in place, experts of a language model, torch.nn's attention, and linear layers of transformers' own.

    All else stays as it is.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, (part, split) in together(model).items():
        if part not in made:
            made[part] = split(part)
        put(model, name, made[part])
    for part in model.modules() if made else ():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False  # which attention of torch.nn alone can read
    return model


def together(model: nn.Module) -> Mapping[str, tuple[nn.Module, Split]]:
    """What is to be set apart, under every name that it has, and what does that."""
    found: dict[str, tuple[nn.Module, Split]] = {name: (part, Experts) for name, part in experts_in(model).items()}
    for name, part in model.named_modules(remove_duplicate=False):
        if (split := way(part)) is not None and name:
            found[name] = part, split
    return found


def way(part: Any) -> Split | None:
    """What sets a part apart that any model may have; of subclasses nobody knows how they use their tensors."""
    if type(part) is nn.MultiheadAttention and part.bias_k is None and not part.add_zero_attn:
        return Attention  # type: ignore[return-value]
    return NAMED.get((type(part).__module__, type(part).__name__))


def turned_back(layer: nn.Module) -> nn.Module:
    """A linear layer of a matrix that is kept with a row for each input."""
    return linear(layer.get_parameter("weight").T, layer.get_parameter("bias")).train(layer.training)


def plain(layer: nn.Module) -> nn.Module:
    """A linear layer of torch.nn with the tensors of one that does the same."""
    return linear(layer.get_parameter("weight"), layer._parameters["bias"]).train(layer.training)


NAMED: dict[tuple[str, str], Split] = {  # by module and name, for transformers need not be there
    ("transformers.pytorch_utils", "Conv1D"): turned_back,
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"): plain,
}


def set_apart(model: nn.Module) -> nn.Module:
    """The model itself, or, where something is to be set apart, one of the same tensors but for that."""
    if not together(model):
        return model
    return apart(copy.deepcopy(model, {id(held): held for held in (*model.parameters(), *model.buffers())}))
