"""Matrices that a model keeps in other ways, set apart as layers of torch.nn, which is what can be compressed."""

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from lissom.models.experts import Experts, experts_in
from lissom.models.families import put
from lissom.models.layers import linear
from lissom.models.multihead import Attention
from lissom.models.recurrent import Cell, Recurrent

Split = Callable[[nn.Module], nn.Module]


def apart(model: nn.Module, stored: Collection[str] = ()) -> nn.Module:
    """Set apart, in place, experts of a language model, torch.nn's attention and recurrent layers, and linear layers of
    transformers' own; a model that is one of these becomes another.

    All else stays as it is, and so does what is `stored` in one piece, by the names of its tensors.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, (part, split) in together(model).items():
        own = (f"{name}.{tensor}".strip(".") for tensor, held in part._parameters.items() if held is not None)
        if split in RENAMED and all(tensor in stored for tensor in own):
            continue
        if part not in made:
            made[part] = split(part)
        if part is model:
            return made[part]
        put(model, name, made[part])
    for part in model.modules() if made else ():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False  # which attention of torch.nn alone can read
    return model


def put_back(model: nn.Module) -> nn.Module:
    """Put back together, in place, recurrent layers of which nothing is compressed: torch.nn's own are faster."""
    for name, part in list(model.named_modules(remove_duplicate=False)):
        if isinstance(part, Recurrent) and (whole := part.whole()) is not None:
            if part is model:
                return whole
            put(model, name, whole)
    return model


def together(model: nn.Module) -> Mapping[str, tuple[nn.Module, Split]]:
    """What is to be set apart, under every name that it has, and what does that."""
    found: dict[str, tuple[nn.Module, Split]] = {name: (part, Experts) for name, part in experts_in(model).items()}
    for name, part in model.named_modules(remove_duplicate=False):
        if (split := way(part)) is not None:
            found[name] = part, split
    return found


def way(part: Any) -> Split | None:
    """What sets a part apart that any model may have; of subclasses nobody knows how they use their tensors."""
    if type(part) is nn.MultiheadAttention and part.bias_k is None and not part.add_zero_attn:
        return Attention  # type: ignore[return-value]
    if type(part) in OWN:
        own = getattr(part, "_flat_weights_names", ())  # which somebody may have taken out and made something else of
        return OWN[type(part)] if part._parameters.keys() >= set(own) else None
    return NAMED.get((type(part).__module__, type(part).__name__))


def turned_back(layer: nn.Module) -> nn.Module:
    """A linear layer of a matrix that is kept with a row for each input."""
    return linear(layer.get_parameter("weight").T, layer.get_parameter("bias")).train(layer.training)


def plain(layer: nn.Module) -> nn.Module:
    """A linear layer of torch.nn with the tensors of one that does the same."""
    return linear(layer.get_parameter("weight"), layer._parameters["bias"]).train(layer.training)


OWN: dict[type[nn.Module], Any] = {
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), Recurrent),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), Cell),
}
RENAMED = (Attention, Recurrent, Cell)  # which give their tensors other names
NAMED: dict[tuple[str, str], Split] = {  # by module and name, for transformers need not be there
    ("transformers.pytorch_utils", "Conv1D"): turned_back,
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"): plain,
}


def set_apart(model: nn.Module) -> nn.Module:
    """The model itself, or, where something is to be set apart, one of the same tensors but for that."""
    if not together(model):
        return model
    return apart(copy.deepcopy(model, {id(held): held for held in (*model.parameters(), *model.buffers())}))
