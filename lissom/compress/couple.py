"""Coupling techniques: layers that must change together are looked at and changed together.

Shapes: c channels, i inputs of a reader.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from operator import attrgetter

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.calibrate.links import observed_links
from lissom.calibrate.observe import Collected
from lissom.compress.plan import Phase, Plan
from lissom.coupling import Coupling, Reader
from lissom.errors import RecipeError
from lissom.formats import CompressedLayer, Dense, Weight, matrix_of
from lissom.models import compressible
from lissom.models.families import FAMILIES, Family, Link, at, fused_sizes
from lissom.statistics import Gram, Moments, Statistic
from lissom.techniques import COUPLING
from lissom.techniques.contract import needs
from lissom.types import Step

Look = Callable[[Mapping[str, nn.Module], Plan], Mapping[str, Collected]]  # runs the data, for what layers are given


def links_of(model: nn.Module, batch: Batch | None) -> list[Link]:
    """The links of a model: those declared for its family, or else what is found by running it on a batch.

    Raises:
        RecipeError: there is nothing to run it on.
    """
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    if family and any(name == family.blocks for name, _ in model.named_modules()):
        return block_links(model, family)
    if batch is None:
        raise RecipeError(f"recipe: how layers of {type(model).__name__} are coupled is found by running it; give data")
    return observed_links(model, compressible(model), batch)


def block_links(model: nn.Module, family: Family, only: str | None = None) -> list[Link]:
    """The declared links of all blocks, or of one."""
    blocks = {f"{family.blocks}.{own}": block for own, block in at(model, family.blocks).named_children()}
    found = {name: block for name, block in blocks.items() if only in (None, name)}
    return [link.inside(name) for name, block in found.items() for link in family.linked(block)]


def meant(step: Step, plan: Plan, links: Sequence[Link]) -> list[Link]:
    """The links of which the step names a layer."""
    return [link for link in links if any(step in plan.get(name, ()) for name in (*link.makers, *link.readers))]


def check_coupled(phase: Phase, links: Sequence[Link]) -> None:
    """See that each step of a phase has something to act on.

    Raises:
        RecipeError: one has not.
    """
    for step in phase.steps:
        if not meant(step, phase.plan, links):
            raise RecipeError(
                f"recipe: {step.technique}: no coupling of layers={step.layers!r} is known; "
                "it needs linear layers that alone read what a norm or another layer makes"
            )


@torch.no_grad()
def couple(
    model: nn.Module, phase: Phase, links: Sequence[Link], originals: MutableMapping[str, Weight], look: Look
) -> None:
    """Run a phase's steps on the links they name; what the layers are now is from here on their original."""
    for step in phase.steps:
        chosen = meant(step, phase.plan, links)
        readers = {link.readers[0]: model.get_submodule(link.readers[0]) for link in chosen}
        seen = look(readers, {name: [step] for name in readers}) if readers and needs(step.technique) else {}
        for link in chosen:
            change(step, model, link, seen.get(link.readers[0], {}))
            names = (name for name in (*link.makers, *link.readers) if name in originals)
            originals.update({name: Dense(values=matrix_of(model.get_submodule(name))) for name in names})


def change(step: Step, model: nn.Module, link: Link, seen: Mapping[type[Statistic], Statistic]) -> None:
    """Run a step on one link, and put what comes back into its layers.

    Raises:
        RecipeError: a knob does not suit these layers, or one of them is compressed already.
    """
    layers = {name: model.get_submodule(name) for name in (*link.makers, *link.readers)}
    for name, layer in layers.items():
        if isinstance(layer, CompressedLayer):
            raise RecipeError(
                f"{step.technique}: {name} is compressed already; put this step before those that do that"
            )
    readers = [layers[name] for name in link.readers]
    inputs = matrix_of(readers[0]).shape[1]
    whole = [p for name in link.makers for p in layers[name].parameters(recurse=False)]
    makers = [p.detach()[-fused_sizes(len(p), inputs, link.fused)[-1] :] for p in whole]
    unit = attrgetter(link.unit)(model) if link.unit else 1
    order = reading_order(inputs, makers[0].shape[0], unit, makers[0].device)
    before = Coupling(
        channels=makers[0].shape[0],
        makers=tuple(p.reshape(p.shape[0], -1).float() + link.offset for p in makers),
        readers=tuple(
            Reader(matrix=matrix_of(layer)[:, order].float(), bias=bias_of(layer), at=order) for layer in readers
        ),
        unit=unit,
        rotates=bool(link.unit),
    )
    kinds = needs(step.technique)
    statistics = [reordered(seen[kind], order) if kind in seen else kind.blank(inputs, order.device) for kind in kinds]
    try:
        after = COUPLING[step.technique](before, *statistics, **step.knobs)
    except RecipeError as error:
        raise RecipeError(f"{step.technique}: {error} of {link.readers[0]}") from None
    for p, old, made in zip(whole, makers, after.makers, strict=True):
        p.data = torch.cat([p.detach()[: -len(old)], (made - link.offset).reshape(old.shape).to(p.dtype)])
    for layer, reader in zip(readers, after.readers, strict=True):
        weight = layer.get_parameter("weight")
        weight.data = reader.matrix[:, order.argsort()].reshape(weight.shape).to(weight.dtype)


def reading_order(inputs: int, channels: int, unit: int, device: torch.device | None = None) -> Int[Tensor, " i"]:
    """The columns of a reader, channel by channel; as a layer has them, a head comes several times, then the next."""
    return torch.arange(inputs, device=device).reshape(channels // unit, -1, unit).transpose(1, 2).flatten()


def reordered(statistic: Statistic, order: Int[Tensor, " i"]) -> Statistic:
    """The statistic of inputs in another order."""
    if isinstance(statistic, Gram):
        return Gram(statistic.n, statistic.xtx[order][:, order], statistic.sum[order])
    assert isinstance(statistic, Moments)
    return Moments(statistic.n, statistic.sum[order], statistic.square[order], statistic.largest[order])


def bias_of(layer: nn.Module) -> Float[Tensor, " o"] | None:
    """A layer's bias, if it has one."""
    bias = layer._parameters.get("bias")
    return None if bias is None else bias.detach().float()
