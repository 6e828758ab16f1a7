"""Shape techniques: channels are taken away or change places, and with them every tensor that has to do with them.

The techniques see a coupling with its channels in order; here they are found in the tensors where they really are.
"""

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.calibrate import Batch, call
from lissom.calibrate.data import TARGETS, device_of, moved
from lissom.compress.couple import Look, reordered
from lissom.compress.plan import Phase
from lissom.coupling import Coupling, Reader
from lissom.errors import ModelError, RecipeError
from lissom.formats import Weight
from lissom.formats.linear import compressed_kind
from lissom.models import weight_of
from lissom.models.couplings import Axis, Joint, Reads, block_joints, traced_joints, width_joints
from lissom.models.families import FAMILIES
from lissom.models.resize import replace_tensors
from lissom.statistics import Gram, Statistic
from lissom.techniques import SHAPE
from lissom.techniques.contract import kinds
from lissom.types import Step

EXAMPLES = 2  # that a model is traced with


def joints_of(model: nn.Module, batch: Batch | None) -> list[Joint]:
    """The couplings of a model: those declared for its family, or else those found in its graph, each of them tried.

    Raises:
        RecipeError: there is nothing to run it on, or it cannot be traced.
    """
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    if family and any(name == family.blocks for name, _ in model.named_modules()):
        return [*block_joints(model, family), *width_joints(model, family)]
    if batch is None:
        raise RecipeError(f"recipe: how layers of {type(model).__name__} are coupled is found by running it; give data")
    example = moved(few(batch), device_of(model))
    try:
        found = traced_joints(model, example)
    except ModelError as error:
        raise RecipeError(f"recipe: {error}") from None
    return [joint for joint in found if readable(model, joint) and proved(model, joint, example)]


def few(batch: Batch) -> Batch:
    """The inputs of a few examples of a batch."""
    if isinstance(batch, Mapping):
        return {name: value[:EXAMPLES] for name, value in batch.items() if name not in TARGETS}
    return (batch[0] if isinstance(batch, tuple) else batch)[:EXAMPLES]


def readable(model: nn.Module, joint: Joint) -> bool:
    """Whether all readers are layers whose inputs can be observed."""
    return all(compressed_kind(model.get_submodule(r.weight.layer)) for r in joint.readers)


@torch.no_grad()
def proved(model: nn.Module, joint: Joint, example: Batch) -> bool:
    """Whether the model without a unit, the others reversed, says what it says when nobody listens to that unit."""
    names = {axis.tensor for axis in joint.makers} | {r.weight.tensor for r in joint.readers}
    before = {name: tensor_of(model, name) for name in names}
    units = torch.arange(joint.units, device="cpu")
    gone, alive = units[-1:], units[:-1].flip(0)
    for r in joint.readers:
        deaf = before[r.weight.tensor].detach().clone()
        deaf[:, r.weight.places(gone)] = 0
        replace_tensors(model, {r.weight.tensor: deaf})
    wanted = spoken(model, example)
    for axis in (*joint.makers, *(r.weight for r in joint.readers)):
        replace_tensors(model, {axis.tensor: shortened(axis, tensor_of(model, axis.tensor), alive)})
    try:
        found = spoken(model, example)
    except (RuntimeError, ValueError, AssertionError):
        found = []
    replace_tensors(model, before)
    return len(found) == len(wanted) and all(map(alike, found, wanted))


def alike(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding."""
    near = 1e-4 * float(other.abs().max()) if other.is_floating_point() and other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=near)


def spoken(model: nn.Module, example: Batch) -> list[Tensor]:
    """All tensors that the model makes."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(call(model, example)) if isinstance(leaf, Tensor)]


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its dotted name."""
    path, _, own = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(path), own)
    return found


def shortened(axis: Axis, tensor: Tensor, alive: Int[Tensor, " u"]) -> Tensor:
    """A tensor with only the places of the units that are alive, in this order, and those of none."""
    return tensor.detach().index_select(axis.dim, axis.kept(alive).to(tensor.device))


def meant(step: Step, phase: Phase, joints: Sequence[Joint]) -> list[Joint]:
    """The couplings of a kind that the technique acts on, of which the step names a layer that makes them.

    Those that read them do not count: in a residual network every block reads what goes past all of them.
    """
    named = {name for name, steps in phase.plan.items() if step in steps}
    return [joint for joint in joints if joint.kind in kinds(step.technique) and not named.isdisjoint(joint.made_by)]


def check_joined(phase: Phase, joints: Sequence[Joint]) -> None:
    """See that each step of a phase has something to act on.

    Raises:
        RecipeError: one has not.
    """
    for step in phase.steps:
        check_free(step, joints)
        if not meant(step, phase, joints):
            raise RecipeError(
                f"recipe: {step.technique}: no channels of layers={step.layers!r} can be taken away or change places; "
                "they must be made and read by layers that are not compressed, and nothing else may depend on them "
                "(heads that one layer makes all stay)"
            )


def check_free(step: Step, joints: Sequence[Joint]) -> None:
    """See that a step which takes from the residual stream, or turns it, finds one that this can be done to.

    Raises:
        RecipeError: it does not.
    """
    asked, found = kinds(step.technique), [joint.kind for joint in joints]
    if "width" in asked and "order" not in asked and "order" in found:
        raise RecipeError(
            f"recipe: {step.technique}: norms stand behind what this model writes to its residual stream, so that its "
            "channels can only change places (permute_stream); leave out that step"
        )


@torch.no_grad()
def reshape(
    model: nn.Module, phase: Phase, joints: Sequence[Joint], originals: MutableMapping[str, Weight], look: Look
) -> None:
    """Run a phase's steps on the couplings they name; the data is looked at once for each step.

    What the layers are now is from here on their original.
    """
    joints = list(joints)
    for step in phase.steps:
        chosen = meant(step, phase, joints)
        readers = {r.weight.layer: model.get_submodule(r.weight.layer) for joint in chosen for r in joint.readers}
        found = look(readers, {name: [step] for name in readers})
        seen = {name: statistics[Gram] for name, statistics in found.items()}
        for number in [joints.index(joint) for joint in chosen]:
            joint = joints[number]
            alive = change(step, model, joint, seen)
            if alive is not None:
                seen |= narrowed(seen, model, joint, alive)
                joints = [other.without(joint, alive) for other in joints]
                layers = {name: model.get_submodule(name) for name in joint.layers if name in originals}
                originals.update({name: weight_of(layer) for name, layer in layers.items()})


def narrowed(
    seen: Mapping[str, Statistic], model: nn.Module, joint: Joint, alive: Int[Tensor, " u"]
) -> dict[str, Statistic]:
    """What the readers of a coupling are still given of what was seen."""
    return {
        r.weight.layer: reordered(seen[r.weight.layer], spans(r.weight.kept(alive), tensor_of(model, r.weight.tensor)))
        for r in joint.readers
        if r.weight.layer in seen
    }


def change(step: Step, model: nn.Module, joint: Joint, seen: Mapping[str, Statistic]) -> Int[Tensor, " u"] | None:
    """Run a step on one coupling as it is now, and put what comes back into the model; returns the units that stayed,
    in their order.

    Raises:
        RecipeError: a knob does not suit it.
    """
    before, grams = as_it_is(model, joint, seen)
    try:
        after = SHAPE[step.technique](before, tuple(grams), **step.knobs)
    except RecipeError as error:
        raise RecipeError(f"{step.technique}: {error} of {joint.layers[0]}") from None
    if after.alive is None:
        return None
    alive = after.alive.cpu()  # where couplings are, wherever the model is
    if after.channels < before.channels:
        first = reversed(list(zip(joint.readers, grams, strict=True)))  # not an expert, which sees some tokens only
        normalize(model, {r.norm: gram for r, gram in first}, alive)
    write(model, joint, after, alive)
    return alive


def as_it_is(model: nn.Module, joint: Joint, seen: Mapping[str, Statistic]) -> tuple[Coupling, list[Gram]]:
    """A coupling with its tensors, channel by channel, and the Gram of each reader."""
    orders = [reading(r.weight, tensor_of(model, r.weight.tensor), joint.units) for r in joint.readers]
    coupling = Coupling(
        channels=joint.units,
        makers=tuple(rows(axis, tensor_of(model, axis.tensor)) for axis in joint.makers),
        readers=tuple(reader(model, r, order) for r, order in zip(joint.readers, orders, strict=True)),
        unit=joint.unit,
        rotates=joint.unit > 1,
        kind=joint.kind,
    )
    return coupling, ordered([seen.get(r.weight.layer) for r in joint.readers], orders)


def ordered(seen: Sequence[Statistic | None], orders: Sequence[Int[Tensor, " _"]]) -> list[Gram]:
    """The Gram of each reader in the order of its columns; readers of one and the same have one and the same."""
    known: dict[tuple[int, tuple[int, ...]], Gram] = {}
    grams = []
    for found, order in zip(seen, orders, strict=True):
        same = (id(found), tuple(order.tolist()))
        if same not in known or found is None:
            given = Gram.blank(len(order), order.device) if found is None else reordered(found, order)
            assert isinstance(given, Gram)
            known[same] = given
        grams.append(known[same])
    return grams


def normalize(model: nn.Module, grams: Mapping[str, Gram], alive: Int[Tensor, " u"]) -> None:
    """Scale the norms that divide by the size of all channels by what that size is without those that go."""
    for name, gram in grams.items():
        if name:
            weight = tensor_of(model, name).detach()
            size = gram.power / weight.float().square().clamp(min=torch.finfo(torch.float32).tiny)
            replace_tensors(model, {name: weight * (size[alive].mean() / size.mean()).sqrt()})


def rows(axis: Axis, tensor: Tensor) -> Float[Tensor, "r _"]:
    """What makes the units, unit by unit."""
    units = int(axis.units.max()) + 1
    own = tensor.detach().movedim(axis.dim, 0)[axis.places(torch.arange(units, device="cpu"))]
    return own.reshape(len(own), -1).float()


def reading(axis: Axis, weight: Tensor, units: int) -> Int[Tensor, " i"]:
    """The columns of a weight as a matrix: those of the units, unit by unit, then those of none."""
    return spans(torch.cat([axis.places(torch.arange(units, device="cpu")), axis.rest()]), weight)


def spans(places: Int[Tensor, " p"], weight: Tensor) -> Int[Tensor, " i"]:
    """The columns of some input channels in a weight as a matrix, to be found where that is."""
    each = weight[0, 0].numel()
    return (places.unsqueeze(1) * each + torch.arange(each, device="cpu")).flatten().to(weight.device)


def reader(model: nn.Module, r: Reads, order: Int[Tensor, " i"]) -> Reader:
    """A layer that reads the units; where batch norm follows, a constant is taken off its mean."""
    weight = tensor_of(model, r.weight.tensor).detach()
    each = weight[0, 0].numel()
    bias = tensor_of(model, r.bias) if r.bias else -tensor_of(model, r.mean) if r.mean else None
    return Reader(
        matrix=weight.flatten(1)[:, order].float(),
        bias=None if bias is None else bias.detach().float(),
        others=len(r.weight.rest()) * each,
        at=order,
    )


def write(model: nn.Module, joint: Joint, after: Coupling, alive: Int[Tensor, " u"]) -> None:
    """Put the readers back, column by column, and shorten or reorder everything."""
    for r, made in zip(joint.readers, after.readers, strict=True):
        weight = tensor_of(model, r.weight.tensor)
        places = torch.empty(weight[0].numel(), dtype=torch.long, device=weight.device)
        places[made.at] = torch.arange(made.matrix.shape[1], device=weight.device)
        order = places[spans(r.weight.kept(alive), weight)]
        fitted = made.matrix[:, order].reshape(len(weight), -1, *weight.shape[2:])
        replace_tensors(model, {r.weight.tensor: fitted})
        if made.bias is not None:
            replace_tensors(model, {r.bias: made.bias} if r.bias else {r.mean: -made.bias})
    for axis in joint.makers:
        replace_tensors(model, {axis.tensor: shortened(axis, tensor_of(model, axis.tensor), alive)})
