"""The shapes that data may come in.

A tensor or a tuple of tensors is one batch; any other iterable (a list, a DataLoader) is many. In a batch that is a
tuple the first is the input and the second, if there is one, the target; a dict is keyword arguments, `labels` apart.

Shapes: n windows, t tokens of a window.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lissom.errors import DataError, LissomError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
TARGETS = ("labels", "label", "targets")


def batches(data: Any) -> Iterator[Batch]:
    """The batches of data in any of the shapes above; lists that a DataLoader collates become tuples.

    Raises:
        DataError: something else is among them.
    """
    many: Iterable[Any] = [data] if isinstance(data, Tensor | tuple | Mapping) else data
    if not isinstance(many, Iterable):
        raise DataError(
            f"data: {type(data).__name__} is no data; give a tensor, (inputs, targets), or an iterable of them"
        )
    for batch in many:
        found = tuple(batch) if isinstance(batch, list) else batch
        parts = found.values() if isinstance(found, Mapping) else found if isinstance(found, tuple) else (found,)
        if not all(isinstance(part, Tensor) for part in parts):
            raise DataError(
                f"data: a batch of {type(batch).__name__} is not made of tensors; give (inputs, targets) of torch"
            )
        if isinstance(found, tuple) and len(found) > 2:
            raise DataError(
                f"data: a tuple of {len(found)} tensors is neither (inputs, targets) nor many batches; give a list of "
                "batches, or for a model of several inputs a dict of its arguments"
            )
        yield found


def call(model: nn.Module, batch: Batch) -> Any:
    """The model's output for a batch's input, which is taken to where the model is."""
    device = device_of(model)
    if isinstance(batch, Mapping):
        return model(**{name: value.to(device) for name, value in batch.items() if name not in TARGETS})
    return model((batch[0] if isinstance(batch, tuple) else batch).to(device))


def first_call(model: nn.Module, batch: Batch) -> Any:
    """The same where it is not known yet whether the model takes such data.

    Raises:
        DataError: it does not.
    """
    try:
        return call(model, batch)
    except (LissomError, torch.OutOfMemoryError):
        raise
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        shapes = [f"{list(part.shape)} of {str(part.dtype).removeprefix('torch.')}" for part in tensors(batch)]
        raise DataError(
            f"data: {type(model).__name__} does not take a batch of {' and '.join(shapes)} ({reason(error)}); give "
            "what its forward takes, (inputs, targets) or a dict of its arguments"
        ) from error


def tensors(batch: Batch) -> tuple[Tensor, ...]:
    """What a batch is made of."""
    if isinstance(batch, Mapping):
        return tuple(batch.values())
    return batch if isinstance(batch, tuple) else (batch,)


def logits_in(output: Any) -> Any:
    """The logits of an output that names them, the first of several, or else the output as it is."""
    found = output.get("logits", output) if isinstance(output, dict) else getattr(output, "logits", output)
    return found[0] if isinstance(found, tuple | list) and found else found


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: its first parameter or buffer."""
    return next((held.device for held in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def each(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with a function applied to each of its tensors."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, tuple):
        return tuple(function(part) for part in batch)
    return {name: function(part) for name, part in batch.items()}


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return each(batch, lambda part: part.to(device))


def token_windows(text: str, tokenizer: "PreTrainedTokenizerBase", length: int) -> Int[Tensor, "n t"]:
    """The text without special tokens, cut into whole windows of `length` tokens.

    Raises:
        DataError: it is shorter than one window.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < length:
        raise DataError(f"data: {len(ids)} tokens are too few for one window of {length}; give more text")
    whole = len(ids) // length * length
    return torch.tensor(ids[:whole], dtype=torch.long).reshape(-1, length)
