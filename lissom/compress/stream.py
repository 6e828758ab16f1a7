"""A language model on disk, compressed part by part; the whole is never in memory."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lissom.calibrate import observe
from lissom.calibrate.gradients import Heard
from lissom.calibrate.merge import merge_layers
from lissom.calibrate.observe import Collected
from lissom.calibrate.spill import Spill
from lissom.calibrate.stream import Stream
from lissom.compress.couple import block_links, check_coupled, couple
from lissom.compress.layers import act, back, check_alone, matrices, with_fisher
from lissom.compress.plan import Phase, Plan, phases, wanted
from lissom.compress.ram import room_for, runs_in, tunes
from lissom.compress.reshape import check_joined, reshape
from lissom.compress.tune import tune
from lissom.errors import RecipeError
from lissom.formats import CompressedLayer, Dense, Masked, Sum, Turned, Weight
from lissom.models import Checkpoint, compressible, replace
from lissom.models.couplings import block_joints
from lissom.models.experts import check_unrouted
from lissom.models.families import at
from lissom.models.resize import matrix_shapes, resize
from lissom.statistics import Statistic
from lissom.techniques.contract import needs
from lissom.types import Recipe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FOLLOWING = ("shape", "block")  # grains that make good what was done to the blocks before


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a language model, compressed: its weights by layer name, and its other tensors as they were."""

    name: str
    weights: dict[str, Weight]
    tensors: dict[str, Tensor]


NOTHING: Mapping[str, Piece] = MappingProxyType({})


def stream_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    windows: Int[Tensor, "n t"],
    max_ram: int | None = None,
    kept: Mapping[str, Piece] = NOTHING,
    group: "ProcessGroup | None" = None,
) -> Iterator[Piece]:
    """Compress a language model part by part, in the order of its forward pass.

    One block is in memory at a time. A block's layers are calibrated on what the original model gives them; where a
    step fits anew what another took away, or tunes, on what the compressed blocks before it make of that.
    `windows` (n windows of t tokens) may have no rows: then every input is taken to matter alike. With `max_ram` the
    process stays below so many bytes of memory. Parts that were `kept` of the same work are not compressed again, and
    not handed out; the others become what they would have become. A `group` of processes, each with its own windows and
    the same parts kept, all make what one would make of the windows of all.

    Raises:
        RecipeError: as for `compress_model`; before anything is read.
        DataError: `max_ram` is too little, as far as can be foreseen.
    """
    stream = Stream(checkpoint, windows)
    family = checkpoint.family
    plan = phases(recipe, layer_names(checkpoint, stream.model))
    stream.floats, stream.group, tuning = runs_in(checkpoint, plan), group, tunes(plan)
    check_alone(group, [name for phase in plan for name in back(wanted(phase.plan))], learns=tuning)
    stream.follow = any(phase.grain in FOLLOWING for phase in plan)
    room = room_for(checkpoint, stream.model, plan, (windows.shape[0], windows.shape[1]), max_ram)
    stream.batch, stream.spill = room.batch, Spill() if room.spilled else None
    for phase in plan:
        if phase.grain == "coupling":
            check_coupled(phase, block_links(stream.model, family))
        if phase.grain == "norm":
            raise RecipeError(f"recipe: {phase.steps[0].technique}: a language model has no batch norms; leave it out")
        if phase.grain == "shape":
            check_joined(phase, block_joints(stream.model, family))
    embedding = stream.embedding()
    names = [name for phase in plan for name in back(wanted(phase.plan)) if not part_of(name, kept)]
    if names and len(windows):
        check_unrouted(stream.model, names)
        stream.heard = stream.listen(embedding, names)
    yield from compressed_part(stream, plan, family.embedding, embedding, kept)
    stream.start(at(stream.model, family.embedding) if stream.follow else embedding, embedding if tuning else None)
    at(stream.model, family.embedding).to("meta")
    del embedding
    stream.onward = any(family.head in phase.plan for phase in plan)
    for name, block in stream.blocks():
        yield from compressed_part(stream, plan, name, block, kept)
    yield from compressed_part(stream, plan, family.norm, stream.finish(), kept)
    head = stream.head()
    if head is not None:
        yield from compressed_part(stream, plan, family.head, head, kept)


def part_of(name: str, parts: Iterable[str]) -> bool:
    """Whether a layer is, or is in, one of the parts."""
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def layer_names(checkpoint: Checkpoint, model: nn.Module) -> list[str]:
    """The layers that steps can name; a head that is tied to the embedding goes by the embedding's name."""
    tied = {checkpoint.family.head} if checkpoint.config.tie_word_embeddings else set()
    return [name for name in compressible(model) if name not in tied]


def compressed_part(
    stream: Stream, plan: Sequence[Phase], name: str, part: nn.Module, kept: Mapping[str, Piece]
) -> Iterator[Piece]:
    """One part, if it was not kept; where the data follows what becomes of parts, it goes on by what is kept of it."""
    if name not in kept:
        act_on(stream, plan, name, part)
        made = piece(stream.checkpoint, name, at(stream.model, name))
        yield made
        kept = {name: made}
    if stream.follow:
        put_back(stream, kept[name])


def act_on(stream: Stream, plan: Sequence[Phase], name: str, part: nn.Module) -> None:
    """Act on the layers of one part that the plan names, in the stream's model."""
    originals = matrices(part, name)
    for phase in plan:
        part = at(stream.model, name)
        layers = compressible(part, name)
        own = phase.on(layers)
        if own and phase.grain == "layer":
            collected = seen_by(stream, name, part, layers, own)
            replace(stream.model, act(layers, own, collected, originals), layers, trainable=False)
        elif own and phase.grain == "coupling":
            if not all(needs(step.technique) for step in phase.steps):  # some act before they look
                stream.go_on(name, part)
            links = block_links(stream.model, stream.family, name)
            couple(stream.model, phase, links, originals, partial(seen_by, stream, name, part))
        elif own and phase.grain == "shape":
            joints = block_joints(stream.model, stream.family, name)
            reshape(stream.model, phase, joints, originals, partial(seen_by, stream, name, part))
        elif own:
            tune(part, phase, originals, stream.lots(name, part), name)


def put_back(stream: Stream, kept: Piece) -> None:
    """Let a part of the stream's model be what is kept of it, in whatever precision that is."""
    part = at(stream.model, kept.name)
    own = {name.removeprefix(f"{kept.name}."): tensor for name, tensor in kept.tensors.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in kept.tensors.items()} | matrix_shapes(kept.weights)
    resize(stream.model, shapes)
    replace(stream.model, kept.weights, compressible(part, kept.name), trainable=False)
    part = at(stream.model, kept.name)
    floats = {name: tensor.to(torch.promote_types(tensor.dtype, stream.floats)) for name, tensor in own.items()}
    part.load_state_dict(floats, strict=False, assign=True)


def seen_by(
    stream: Stream, name: str, part: nn.Module, layers: Mapping[str, nn.Module], plan: Plan
) -> dict[str, Collected]:
    """What layers of a part are given when the data runs through it."""
    kinds = wanted(plan)
    return seen_in(
        stream, name, part, layers, kinds, {own: stream.heard[own] for own in back(kinds) if own in stream.heard}
    )


def seen_in(
    stream: Stream,
    name: str,
    part: nn.Module,
    layers: Mapping[str, nn.Module],
    kinds: Mapping[str, set[type[Statistic]]],
    heard: Mapping[str, Heard],
) -> dict[str, Collected]:
    """Statistics of these kinds of layers of a part, with what was heard of them."""
    weights = {own: found.weights() for own, found in heard.items()}
    with observe(layers, kinds, weights) as collected:
        stream.see(name, part, [layers[own] for own, needed in kinds.items() if needed and own in layers])
    if stream.group is not None:
        merge_layers(collected, layers, kinds, stream.group)
    return with_fisher(collected, heard)


def piece(checkpoint: Checkpoint, name: str, part: nn.Module) -> Piece:
    """A part as it is stored: what is not compressed in the precision that it had."""
    layers = {n: layer for n, layer in compressible(part, name).items() if isinstance(layer, CompressedLayer)}
    weights = {n: stored_like(layer.weight, kept_in(checkpoint, f"{n}.weight")) for n, layer in layers.items()}
    state = {f"{name}.{own}": tensor for own, tensor in part.state_dict().items() if ".matrix." not in f".{own}"}
    tensors = {n: exactly(tensor, kept_in(checkpoint, n)) for n, tensor in state.items()}
    return Piece(name=name, weights=weights, tensors=tensors)


def assembled(checkpoint: Checkpoint, weight: Callable[[str], Weight | None]) -> Iterator[Piece]:
    """The parts of a language model with layers that were compressed before; None leaves a layer as it is."""
    model, family = checkpoint.skeleton(), checkpoint.family
    blocks = [f"{family.blocks}.{own}" for own, _ in at(model, family.blocks).named_children()]
    heads = [] if checkpoint.config.tie_word_embeddings else [family.head]
    for name in (family.embedding, *blocks, family.norm, *heads):
        layers = compressible(checkpoint.fill(model, name, None), name)
        weights = {own: found for own in layers if (found := weight(own)) is not None}
        replace(model, weights, layers, trainable=False)
        yield piece(checkpoint, name, at(model, name))
        at(model, name).to("meta")


def kept_in(checkpoint: Checkpoint, name: str) -> torch.dtype:
    """The type that a tensor had; that of the embedding where a head of its own is new."""
    new = name not in checkpoint.names and name == f"{checkpoint.family.head}.weight"
    return checkpoint.tensor(f"{checkpoint.family.embedding}.weight" if new else name).dtype


def exactly(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in the type it had; but vectors, which are small, keep the digits that a technique has given them."""
    narrow = tensor.to(dtype)
    return tensor if tensor.dim() == 1 and not torch.equal(narrow.to(tensor.dtype), tensor) else narrow


def stored_like(weight: Weight, dtype: torch.dtype) -> Weight:
    """Values that are kept in floating point take no more bytes than they had."""
    if isinstance(weight, Dense | Masked):
        return dataclasses.replace(weight, values=weight.values.to(dtype))
    if isinstance(weight, Sum | Turned):
        return dataclasses.replace(weight, base=stored_like(weight.base, dtype))
    return weight
