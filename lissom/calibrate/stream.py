"""A checkpoint as a stream of blocks: one block resident at a time, each seeing what those before it now say.

The hidden states of the calibration windows wait between blocks; nothing else of the model is in memory.

Shapes: n windows, t tokens, h hidden.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.models import Checkpoint
from lissom.models.families import at, put

Call = dict[str, Any]


class Stream:
    """Hands out embedding, blocks, norm and head in order; between two blocks the data flows on.

    `windows` may be empty (no rows): then nothing is calibrated and the parts are only handed out.
    """

    def __init__(self, checkpoint: Checkpoint, windows: Int[Tensor, "n t"], batch: int = 8) -> None:
        self.checkpoint, self.windows, self.batch = checkpoint, windows, batch
        self.model, self.family = checkpoint.skeleton(), checkpoint.family
        self.hidden = torch.empty(0)

    def embedding(self) -> nn.Module:
        """The embedding; kept, for the hidden states start from it and a tied head ends with it."""
        return self.checkpoint.fill(self.model, self.family.embedding)

    def start(self, embedding: nn.Module) -> None:
        """Embed the windows, by way of the (perhaps compressed) embedding."""
        put(self.model, self.family.embedding, embedding)
        with torch.inference_mode():
            self.hidden = torch.cat([embedding(ids) for ids in self.windows.split(self.batch)])
        self.calls = self._calls()

    def lots(self) -> Sequence[Tensor]:
        """The hidden states, a batch of windows at a time; none where there is no data, which not every block takes."""
        return self.hidden.split(self.batch) if len(self.hidden) else ()

    def _calls(self) -> list[Call]:
        """What the model passes each of its blocks beside the hidden states: it is run without them once."""
        blocks = at(self.model, self.family.blocks)
        recorders = [Recorder(block) for block in blocks.children()]
        put(self.model, self.family.blocks, nn.ModuleList(recorders))
        with torch.inference_mode():
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
            block = self.checkpoint.fill(self.model, name)
            yield name, block
            self.hidden = self.run(block, self.calls[number])
            block.to("meta")

    @torch.inference_mode()
    def run(self, block: nn.Module, call: Call) -> Float[Tensor, "n t h"]:
        """The hidden states after a block."""
        parts = [self._one(block, hidden, call) for hidden in self.lots()]
        return torch.cat(parts) if parts else self.hidden

    def see(self, name: str, block: nn.Module) -> None:
        """Run a block on the data for what its layers see; the hidden states stay as they are."""
        call = self.calls[int(name.rpartition(".")[2])]
        with torch.inference_mode():
            for hidden in self.lots():
                self._one(block, hidden, call)

    @staticmethod
    def _one(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
        result = block(hidden, **call)
        found: Tensor = result[0] if isinstance(result, tuple) else result
        return found

    def finish(self) -> nn.Module:
        """The final norm, through which the data flows on to the head."""
        norm = self.checkpoint.fill(self.model, self.family.norm)
        with torch.inference_mode():
            self.hidden = norm(self.hidden)
        return norm

    def head(self) -> nn.Module | None:
        """The head, or None where the embedding serves as the head."""
        if self.checkpoint.config.tie_word_embeddings:
            return None
        return self.checkpoint.fill(self.model, self.family.head)


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
