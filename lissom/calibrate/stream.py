"""A checkpoint as a stream of blocks, one of them resident at a time.

The hidden states of the calibration windows wait between blocks; nothing else of the model is in memory. They are what
the original blocks say, each of which is run once; or, with `follow`, what the blocks say once they are changed, for
techniques that make good what those before them did.

A checkpoint of bfloat16 runs in bfloat16 where the processor multiplies that natively: it takes about half of the time
and of the memory, and what a technique makes of the data hangs on it far less than on which data it is.

Shapes: n windows, t tokens, h hidden.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lissom.calibrate.gradients import E, Heard, end_loss, hear, outputs
from lissom.calibrate.observe import check_flow
from lissom.calibrate.spill import Spill, joined
from lissom.formats import matrix_of
from lissom.models import Checkpoint, compressible
from lissom.models.families import at, put
from lissom.resident import give_back
from lissom.statistics import multiplies_bfloat16

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Call = dict[str, Any]


class Stream:
    """Hands out embedding, blocks, norm and head in order; between two blocks the data flows on.

    `windows` may be empty (no rows): then nothing is calibrated and the parts are only handed out. With `spill` the
    hidden states wait on disk. The parts, and the data in them, are of type `floats`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Int[Tensor, "n t"],
        batch: int = 8,
        spill: Spill | None = None,
        floats: torch.dtype = torch.float32,
    ) -> None:
        self.checkpoint, self.windows, self.batch, self.floats = checkpoint, windows, batch, floats
        self.model, self.family = checkpoint.skeleton(), checkpoint.family
        self.hidden = self.taught = self.wanted = torch.empty(0)
        self.calls: list[Call] = []
        self.heard: dict[str, Heard] = {}
        self.spill = spill
        self.group: ProcessGroup | None = None  # of processes, each of which has a part of the windows
        self.follow = True  # whether the data goes through blocks as they are when the next is asked for
        self.onward = True  # whether it must come as far as the head
        self.further: Tensor | None = None  # the data after the present block, where that is known already

    def embedding(self) -> nn.Module:
        """The embedding, from which the hidden states start; a tied head ends with it."""
        return self._fill(self.family.embedding)

    def _fill(self, name: str) -> nn.Module:
        return self.checkpoint.fill(self.model, name, self.floats)

    @torch.no_grad()
    def start(self, embedding: nn.Module, original: nn.Module | None = None) -> None:
        """Embed the windows, by way of the (perhaps compressed) embedding.

        With the original one what the original blocks say is followed beside it, for those who tune.
        """
        put(self.model, self.family.embedding, embedding)
        self.hidden = self._joined(embedding(ids) for ids in self.windows.split(self.batch))
        if original is not None:
            self.taught = self._joined(original(ids) for ids in self.windows.split(self.batch))
        self.calls = self._calls()

    def _calls(self) -> list[Call]:
        """What the model passes each of its blocks beside the hidden states: it is run without them once."""
        blocks = at(self.model, self.family.blocks)
        recorders = [Recorder(block) for block in blocks.children()]
        put(self.model, self.family.blocks, nn.ModuleList(recorders))
        with torch.no_grad():
            base, _, _ = self.family.blocks.rpartition(".")
            norm = at(self.model, self.family.norm)
            put(self.model, self.family.norm, nn.Identity())
            at(self.model, base)(inputs_embeds=self.hidden[:1], use_cache=False)
            put(self.model, self.family.norm, norm)
        put(self.model, self.family.blocks, blocks)
        return [recorder.call for recorder in recorders]

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Each block with its name; when the next is asked for, the data has flowed through the one before."""
        for number in range(len(self.calls)):
            name = f"{self.family.blocks}.{number}"
            block = self._fill(name)
            self.wanted, self.further = self._flow(name, block, self.taught), None
            yield name, block
            if self._goes_on(name):
                self.hidden = self._flow(name, block, self.hidden) if self.further is None else self.further
            self.taught = self.wanted
            block.to("meta")
            give_back()

    def _goes_on(self, name: str) -> bool:
        """Whether the data is wanted after a block."""
        return self.onward or name != f"{self.family.blocks}.{len(self.calls) - 1}"

    @torch.no_grad()
    def _flow(self, name: str, part: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states after a part."""

        def lots() -> Iterator[Tensor]:
            for lot in hidden.split(self.batch):
                made = self._one(name, part, lot)
                check_flow(name, "makes", made)
                yield made

        return self._joined(lots()) if len(hidden) else hidden

    def _joined(self, lots: Iterable[Tensor]) -> Tensor:
        return joined(lots, len(self.windows), self.spill)

    @torch.no_grad()
    def see(self, name: str, part: nn.Module, watched: Collection[nn.Module] = ()) -> None:
        """Run a part on the data for what its layers see; the hidden states stay as they are.

        Unless the data follows what becomes of a block, the first such run is the one that it flows on by. In others,
        where it is told which layers are `watched`, what comes after the last of them is not run, once all have been.
        """
        if self.go_on(name, part):
            return
        last: nn.Module | None = None
        for lot in self.hidden.split(self.batch) if len(self.hidden) else ():
            with calls_of(watched) as called, until(last):
                self._one(name, part, lot)
            last = called[-1] if len(set(called)) == len(called) == len(watched) > 0 else None
            if self.spill is not None:
                self.spill.forget()

    def go_on(self, name: str, part: nn.Module) -> bool:
        """Let the data flow on by a block as it is, unless it did, or follows what becomes of it; whether it does."""
        block = name.rpartition(".")[0] == self.family.blocks
        if not block or self.follow or self.further is not None or not self._goes_on(name):
            return False
        self.further = self._flow(name, part, self.hidden)
        return True

    def listen(self, embedding: nn.Module, names: Collection[str]) -> dict[str, Heard]:
        """Through the original model and back from its end loss: what that says of the layers of these names.

        Fisher matrices wait on disk where hidden states do.
        """
        heard = dict[str, Heard]()
        for _, _, found in self.backward(embedding, set(names) - {self.family.embedding}, Heard.of):
            for own in found.values() if self.spill is not None else ():
                own.fisher.ggt = joined([own.fisher.ggt], len(own.fisher.ggt), self.spill)
            heard |= found
        return heard

    def backward(
        self, embedding: nn.Module, names: Collection[str], new: Callable[[nn.Module, Tensor], E]
    ) -> Iterator[tuple[str, nn.Module, dict[str, E]]]:
        """Through the original model and back from its end loss: its parts, the last first, with what is heard of each.

        The inputs of all blocks wait meanwhile; on the way back each block is read and run once more. `see` runs a part
        that is out on what it was given (the embedding, at last, on nothing). What was heard is let go afterwards.
        """
        self.start(embedding)
        # In one piece, not scattered among the blocks that come and go, which leaves holes too small for the next.
        waiting = joined((self.hidden.unsqueeze(0) for _ in self.blocks()), len(self.calls), self.spill)
        heard = dict[str, E]()
        head, gradient = self._at_the_end(embedding, names, heard, new)
        yield self.family.head, head, heard
        head.to("meta")
        for number in reversed(range(len(waiting))):
            heard.clear()
            name, self.hidden = f"{self.family.blocks}.{number}", waiting[number]
            block = self._fill(name)
            layers = {own: layer for own, layer in compressible(block, name).items() if own in names}
            gradient = self._joined(self._back(name, block, layers, heard, new, self.hidden, gradient))
            yield name, block, heard
            block.to("meta")
            give_back()
        heard.clear()
        self.hidden = torch.empty(0)
        if self.family.embedding in names:
            heard[self.family.embedding] = self._embedded(embedding, new, gradient)
        yield self.family.embedding, embedding, heard

    def _back(
        self,
        name: str,
        block: nn.Module,
        layers: Mapping[str, nn.Module],
        heard: dict[str, E],
        new: Callable[[nn.Module, Tensor], E],
        *flow: Tensor,
    ) -> Iterator[Tensor]:
        for hidden, gradient in zip(*(lots.split(self.batch) for lots in flow), strict=True):
            hidden = hidden.detach().requires_grad_()
            with outputs(layers) as taken, torch.enable_grad():
                yield hear(heard, taken, (self._one(name, block, hidden) * gradient).sum(), [hidden], new=new)[0]

    def _at_the_end(
        self, embedding: nn.Module, names: Collection[str], heard: dict[str, E], new: Callable[[nn.Module, Tensor], E]
    ) -> tuple[nn.Module, Tensor]:
        """The head, and the gradient of the end loss at the last block's output; what the head is given stays."""
        norm = self._fill(self.family.norm)
        head = self.head() or tied(at(self.model, self.family.head), embedding)
        layers = {self.family.head: head} if self.family.head in names else {}
        generator = torch.Generator().manual_seed(0)

        def back() -> Iterator[Tensor]:
            for hidden in self.hidden.split(1):  # one window at a time: logits are wide
                hidden = hidden.detach().requires_grad_()
                with outputs(layers) as taken, torch.enable_grad():
                    with self._running():
                        said = limited(head(norm(hidden)), self.checkpoint.config)
                    yield hear(heard, taken, end_loss(said, True, generator), [hidden], new=new)[0]

        gradient = self._joined(back())
        self.hidden = self._flow(self.family.norm, norm, self.hidden)
        return head, gradient

    def _embedded(self, embedding: nn.Module, new: Callable[[nn.Module, Tensor], E], gradient: Tensor) -> E:
        """What is heard of the embedding, from the gradient at what it gave."""
        heard = new(embedding, gradient)
        for ids, lot in zip(self.windows.split(self.batch), gradient.split(self.batch), strict=True):
            heard.see(embedding, ids, lot)
        return heard

    def lots(self, name: str, block: nn.Module) -> list[tuple[Callable[[], Tensor], Tensor]]:
        """How to run a block on each lot of data, and what the original says where the original blocks lead to it."""
        if not len(self.wanted):
            return []
        pairs = zip(self.hidden.split(self.batch), self.wanted.split(self.batch), strict=True)
        return [(partial(self._one, name, block, lot), wanted) for lot, wanted in pairs]

    def _one(self, name: str, part: nn.Module, hidden: Tensor) -> Tensor:
        blocks, _, number = name.rpartition(".")
        call = self.calls[int(number)] if blocks == self.family.blocks else {}
        with self._running():
            result = part(hidden, **call)
        found: Tensor = result[0] if isinstance(result, tuple) else result
        return found

    def _running(self) -> torch.autocast:
        """Within it parameters that a technique made in float32 go together with others."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.floats == torch.bfloat16)

    def finish(self) -> nn.Module:
        """The final norm, through which the data flows on to the head."""
        norm = self._fill(self.family.norm)
        if self.onward:
            self.hidden = self._flow(self.family.norm, norm, self.hidden)
        self.taught = self.wanted = torch.empty(0)
        return norm

    def head(self) -> nn.Module | None:
        """The head, or None where the embedding serves as the head."""
        if self.checkpoint.config.tie_word_embeddings:
            return None
        return self._fill(self.family.head)


def native(checkpoint: Checkpoint) -> torch.dtype:
    """The type to run a checkpoint in: bfloat16 if it is stored so and the processor can, else float32."""
    stored = checkpoint.tensor(f"{checkpoint.family.norm}.weight").dtype
    return torch.bfloat16 if stored == torch.bfloat16 and multiplies_bfloat16() else torch.float32


@contextmanager
def calls_of(layers: Collection[nn.Module]) -> Iterator[list[nn.Module]]:
    """Within the block, the layers are listed as they are called."""
    called: list[nn.Module] = []
    handles = [layer.register_forward_pre_hook(lambda layer, given: called.append(layer)) for layer in layers]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


class Reached(Exception):
    """The layer was called after which nothing matters."""


@contextmanager
def until(layer: nn.Module | None) -> Iterator[None]:
    """Within the block nothing more is run once the layer is called; the hooks that it has already still see that."""

    def stop(layer: nn.Module, given: object) -> None:
        raise Reached

    handles = [] if layer is None else [layer.register_forward_pre_hook(stop)]
    with suppress(Reached):
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def tied(head: Any, embedding: nn.Module) -> nn.Module:
    """A head with the matrix of the embedding."""
    head.weight = nn.Parameter(matrix_of(embedding), requires_grad=False)
    return head  # type: ignore[no-any-return]


def limited(logits: Tensor, config: Any) -> Tensor:
    """Logits as the model gives them out: some families bend them, so that none is beyond a bound."""
    bound = getattr(config, "final_logit_softcapping", None)
    return logits if bound is None else bound * torch.tanh(logits / bound)


class Recorder(nn.Module):
    """Stands in for a block, keeps what it was called with, and passes the hidden states on.

    Attributes of the block that the model reads (such as the kind of its attention) are the block's own.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block
        self.call: Call = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, hidden: Tensor, **call: Any) -> Tensor:
        """Remember the call."""
        self.call = call
        return hidden
