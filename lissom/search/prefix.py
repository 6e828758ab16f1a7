"""What a module does before a layer, remembered: the same for all forms of that layer, so that it is computed once.

A call of a part that ends before the layer is called for the first time gives what it gave in the original. It is
remembered, of a part as a whole and not of what is in it, and other forms are given it in place of what would be
computed again. Parts are told by the order in which they are called, which is the same up to the layer.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as trees

ROOM = 256 * 2**20  # bytes of what is remembered of a batch


class Reached(BaseException):
    """The layer is called, and what comes before it is known; no part of a module takes it for an error of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a call gave, and how many calls there were in it, itself among them."""

    output: Tensor
    calls: int


@dataclass(slots=True, kw_only=True)
class Open:
    """A call that has not ended: its number, its inputs with their versions, and the calls in it that are known."""

    number: int
    inputs: list[tuple[Tensor, int | None]]
    inside: list[int]


class Prefix:
    """What comes before some layers.

    Args:
        model: the module as it is, in evaluation mode.
        layers: those of which several forms are tried, by name.
    """

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        self.model, self.layers = model, layers
        self.held: dict[int, Given] = {}
        self.room, self.called, self.active = ROOM, 0, False
        self.open: list[Open] = []

    def remember(self, run: Callable[[nn.Module], object]) -> None:
        """Run the module on a batch as far as the layers, and remember what comes before them."""
        self.held, self.open = {}, []
        self.room, self.called = ROOM, 0
        handles = [
            handle
            for name, part in self.model.named_modules()
            for handle in (
                part.register_forward_pre_hook(partial(self._begun, name), with_kwargs=True, prepend=True),
                part.register_forward_hook(partial(self._ended, name)),
            )
        ]
        try:
            run(self.model)
        except Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _begun(self, name: str, part: nn.Module, arguments: Any, named: Any) -> None:
        if name in self.layers:
            raise Reached
        inputs = [one for one in trees.tree_leaves((arguments, named)) if isinstance(one, Tensor)]
        self.open.append(Open(number=self.called, inputs=[(one, version(one)) for one in inputs], inside=[]))
        self.called += 1

    def _ended(self, name: str, part: nn.Module, arguments: Any, output: Any) -> None:
        call = self.open.pop()
        known, freed = call.inside, sum(self.held[number].output.nbytes for number in call.inside)
        if self._alone(name, part, call, output) and output.nbytes <= self.room + freed:
            for number in call.inside:
                del self.held[number]
            self.room += freed - output.nbytes
            self.held[call.number] = Given(output=output.clone(), calls=self.called - call.number)
            known = [call.number]
        if self.open:
            self.open[-1].inside += known

    def _alone(self, name: str, part: nn.Module, call: Open, output: Any) -> bool:
        """Whether the output is all that a call did: it has a place of its own, and no input was written over.

        What the layers lie in may read them without a call, and what hooks make of outputs would be made of them twice.
        """
        around = not name or any(layer.startswith(f"{name}.") for layer in self.layers)
        if around or len(part._forward_hooks) > 1 or not isinstance(output, Tensor):
            return False
        place = output.untyped_storage().data_ptr()
        return all(
            before is not None and version(one) == before and one.untyped_storage().data_ptr() != place
            for one, before in call.inputs
        )

    def begin(self) -> None:
        """Another form is about to run on the batch that was looked at."""
        self.called, self.active = 0, True

    def let(self, changed: nn.Module) -> None:
        """Give a copy of the module, with these layers in another form, what is remembered, until they are called."""
        for name, part in changed.named_modules():
            part.forward = partial(self._given, name in self.layers, part.forward)

    def _given(self, reached: bool, forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.active = self.active and not reached
        if not self.active:
            return forward(*arguments, **named)
        known = self.held.get(self.called)
        self.called += 1 if known is None else known.calls
        return forward(*arguments, **named) if known is None else known.output.clone()


def version(tensor: Tensor) -> int | None:
    """A number that grows whenever a tensor is written over; None where nobody counts."""
    return None if tensor.is_inference() else tensor._version
