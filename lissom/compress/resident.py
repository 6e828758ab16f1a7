"""A language model on disk: streamed, or, where a technique must see the whole of it, compressed in memory.

Steps on the residual stream that come first are taken in memory, and what they leave is streamed.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from torch import Tensor, nn

from lissom.compress.memory import compress_model
from lissom.compress.stream import NOTHING, Piece, exactly, kept_in, piece, stream_checkpoint
from lissom.errors import RecipeError
from lissom.formats import freeze
from lissom.models import Checkpoint
from lissom.models.families import BY_BLOCK, at
from lissom.techniques.contract import WHOLE, check, grain
from lissom.types import Recipe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ORDERS = {"permute_stream"}  # techniques of couplings that reach over all blocks, but leave every shape as it is
ACROSS = {"width"} | ORDERS
WINDOWS = 4  # of a batch, at each of which a technique that learns takes a step
EXPERTS = ("mlp_only_layers", "decoder_sparse_step")
TOLD = ("num_hidden_layers", *BY_BLOCK, *EXPERTS, "hidden_size", "head_dim", "tie_word_embeddings")  # may have changed


def conduct(
    checkpoint: Checkpoint,
    recipe: Recipe,
    windows: Int[Tensor, "n t"],
    max_ram: int | None = None,
    kept: Mapping[str, Piece] = NOTHING,
    group: "ProcessGroup | None" = None,
) -> tuple[Iterator[Piece], dict[str, Any]]:
    """The compressed parts of a language model, and what its config has to say that it did not say before.

    Where it is streamed, parts that were `kept` are not among them. A `group` of processes has windows each, and all
    make the same of them.

    Raises:
        RecipeError: as for `compress_model`, or the model must be in memory, which is to be kept small.
    """
    for step in recipe.steps:
        check(step)
    whole = [step.technique for step in recipe.steps if grain(step.technique) in WHOLE or step.technique in ACROSS]
    if not whole:
        return stream_checkpoint(checkpoint, recipe, windows, max_ram, kept, group), {}
    if max_ram is not None:
        raise RecipeError(f"recipe: {whole[0]} needs the whole model in memory; leave out max_ram, or that step")
    data = list(windows.split(WINDOWS)) if len(windows) else None
    first = list(takewhile(lambda step: grain(step.technique) == "stream" or step.technique in ORDERS, recipe.steps))
    if first:
        held = Held(checkpoint, compress_model(loaded(checkpoint), data, steps=first, group=group))
        rest = Recipe(steps=recipe.steps[len(first) :])
        pieces_of_it, told = conduct(held, rest, windows, kept=kept, group=group)
        return pieces_of_it, {"tie_word_embeddings": held.config.tie_word_embeddings} | told
    model = compress_model(loaded(checkpoint), data, steps=recipe.steps, group=group)
    config = model.config.to_dict()  # type: ignore[union-attr, operator]
    return pieces(checkpoint, model), {name: config[name] for name in TOLD if config.get(name) is not None}


class Held(Checkpoint):
    """A checkpoint whose tensors are in memory, as they would be stored."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        self.folder, self.family, self.config = checkpoint.folder, checkpoint.family, copy.deepcopy(checkpoint.config)
        self.config.tie_word_embeddings = model.config.tie_word_embeddings  # type: ignore[union-attr]
        state = model.state_dict()
        self._tensors = {name: exactly(tensor, kept_in(checkpoint, name)) for name, tensor in state.items()}

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self._tensors[name]


def loaded(checkpoint: Checkpoint) -> nn.Module:
    """The model of a checkpoint with all its weights, in float32."""
    model, family = checkpoint.skeleton(), checkpoint.family
    names = [f"{family.blocks}.{own}" for own, _ in at(model, family.blocks).named_children()]
    for name in (family.embedding, *names, family.norm):
        checkpoint.fill(model, name)
    if checkpoint.config.tie_word_embeddings:
        at(model, family.head).weight = at(model, family.embedding).weight
    else:
        checkpoint.fill(model, family.head)
    return model


def pieces(checkpoint: Checkpoint, model: nn.Module) -> Iterator[Piece]:
    """A model in memory, part by part as it is stored; its original is in the checkpoint."""
    family = checkpoint.family
    freeze(model)
    names = [f"{family.blocks}.{own}" for own, _ in at(model, family.blocks).named_children()]
    tied = model.config.tie_word_embeddings  # type: ignore[union-attr]
    for name in (family.embedding, *names, family.norm, *(() if tied else (family.head,))):
        yield piece(checkpoint, name, at(model, name))
