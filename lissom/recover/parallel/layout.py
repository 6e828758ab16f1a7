"""The layout: how the workers divide the work, as sizes of axes of one mesh.

    pipeline   each has some stages of the model, and hands on what they make of one part of a batch after the other
    data       each has all of it, and learns from its share of every batch (DistributedDataParallel)
    shard      as data, but each keeps a part of every parameter, gradient and state, and sees the whole of a block as
               it is run (FSDP2: Zhao et al., PVLDB 2023, arXiv:2304.11277)
    tensor     each has some heads and neurons of every block of a language model

Several may go together; each then divides what the others leave. Where training stands is written down whole, whatever
the layout: what one wrote another reads.
"""

from collections.abc import Mapping
from math import prod

from lissom.errors import RecipeError, meant
from lissom.recover.parallel.pipeline import TWICE
from lissom.recover.parallel.workers import Workers
from lissom.recover.training import PLAIN, STAGES, Training

AXES = ("pipeline", "data", "shard", "tensor")  # on the mesh those are nearest to each other that speak most
WHOLE = ("adamw8", "muon", "sam")  # training algorithms that must see whole matrices, or all of them
Layout = Mapping[str, int]


def read_layout(given: str) -> dict[str, int]:
    """A layout written as data=2,shard=4; empty is what all workers make along `data`.

    Raises:
        RecipeError: there is no such axis, or a size is none.
    """
    found: dict[str, int] = {}
    for part in filter(None, given.split(",")):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in AXES:
            raise RecipeError(f"parallel: {axis!r} is none of {', '.join(AXES)}{meant(axis, AXES)}")
        if not size.isdecimal() or not int(size):
            raise RecipeError(f"parallel: {part!r} is no size of an axis; write {axis}=2")
        found[axis] = int(size)
    return found


def sizes_of(layout: Layout, team: Workers) -> dict[str, int]:
    """The sizes of all axes; without a layout all workers are along `data`.

    Raises:
        RecipeError: it needs more workers than there are, or fewer.
    """
    found = {axis: layout.get(axis, 1) for axis in AXES}
    if not layout:
        found["data"] = team.count
    need = prod(found.values())
    if need != team.count:
        shown = ",".join(f"{axis}={size}" for axis, size in layout.items())
        raise RecipeError(
            f"parallel: {shown} needs {need} workers, and there are {team.count}; start them with torchrun"
        )
    return found


def check_layout(layout: Layout, team: Workers, training: Training) -> None:
    """See that there are as many workers as the layout needs, and that all that is asked for goes with it.

    Raises:
        RecipeError: it does not.
    """
    sizes = sizes_of(layout, team)
    divided = [axis for axis in ("pipeline", "shard", "tensor") if sizes[axis] > 1]
    if divided and training.optimizer in WHOLE:
        raise RecipeError(
            f"parallel: {training.optimizer} must see whole matrices, and all of them, which with {divided[0]}= no "
            "worker has; take adamw, or data="
        )
    if training.local and (divided or team.count == 1):
        raise RecipeError("parallel: local steps are for several workers along data; leave out local, or start them")
    if training.gradients != PLAIN and sizes["shard"] > 1:
        raise RecipeError("parallel: gradients travel in few bits along data only; leave out gradients, or shard")
    if training.gradients != PLAIN and divided and sizes["data"] == 1:
        raise RecipeError("parallel: gradients travel in few bits along data; leave out gradients, or add data=2")
    if sizes["pipeline"] == 1 and training.stages != STAGES[0]:
        raise RecipeError(f"parallel: {training.stages} is an order of stages, and there are none; add pipeline=2")
    if sizes["pipeline"] > 1 and training.hidden:
        raise RecipeError("parallel: stages do not see each other's hidden outputs; leave out hidden, or pipeline")
    if sizes["pipeline"] > 1 and sizes["shard"] > 1 and training.stages in TWICE:
        raise RecipeError(f"parallel: {training.stages} has two stages on each worker, which shard cannot; take 1f1b")
