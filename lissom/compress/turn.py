"""The residual stream of a language model, made ready to be turned, and turned.

The weights of its norms go into the layers that read them; a head that was the embedding becomes one of its own.
"""

from collections.abc import MutableMapping
from dataclasses import replace

import torch
from torch import nn

from lissom.compress.reshape import as_it_is, check_free, tensor_of
from lissom.errors import RecipeError
from lissom.formats import Weight
from lissom.models import weight_of
from lissom.models.couplings import Axis, Joint, width_joints
from lissom.models.families import FAMILIES, Family, at
from lissom.models.resize import replace_tensors
from lissom.techniques import STREAM
from lissom.types import Step


def family_in(model: nn.Module) -> Family | None:
    """The family of a language model; None for others, and for a part of one."""
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    return family if family and any(name == family.head for name, _ in model.named_modules()) else None


@torch.no_grad()
def turn(model: nn.Module, step: Step, originals: MutableMapping[str, Weight]) -> None:
    """Run a step on the stream; what the layers are now is from here on their original.

    Raises:
        RecipeError: it is no language model of a known family, or a layer at its stream is compressed already.
    """
    family = family_in(model)
    if family is None:
        raise RecipeError(
            f"recipe: {step.technique}: {type(model).__name__} is none of the language models whose stream is known: "
            f"{', '.join(FAMILIES)}"
        )
    untie(model, family)
    joints = width_joints(model, family)
    if not joints:
        raise RecipeError(f"{step.technique}: a layer is compressed already; put this step before those that do that")
    check_free(step, joints)
    joint = folded(model, joints[0])
    before, _ = as_it_is(model, joint, {})
    after = STREAM[step.technique](before, **step.knobs)
    for axis, made in zip(joint.makers, after.makers, strict=True):
        put_back(model, axis, made)
    replace_tensors(model, {r.weight.tensor: m.matrix for r, m in zip(joint.readers, after.readers, strict=True)})
    originals.update({name: weight_of(at(model, name)) for name in joint.layers if name in originals})


def put_back(model: nn.Module, axis: Axis, made: torch.Tensor) -> None:
    """What makes the channels, a row for each, in the tensor it is of."""
    before = tensor_of(model, axis.tensor)
    replace_tensors(model, {axis.tensor: made.reshape(before.movedim(axis.dim, 0).shape).movedim(0, axis.dim)})


def untie(model: nn.Module, family: Family) -> None:
    """Give a head that is the embedding a matrix of its own."""
    head, embedding = (at(model, name) for name in (family.head, family.embedding))
    if getattr(head, "weight", None) is getattr(embedding, "weight", 0):
        shared = head.get_parameter("weight")
        head.weight = nn.Parameter(shared.detach().clone(), shared.requires_grad)
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]


def folded(model: nn.Module, joint: Joint) -> Joint:
    """The stream with the weights of its norms in the layers that read them, and ones in their place."""
    norms = {r.norm: tensor_of(model, r.norm).detach() for r in joint.readers}
    for r in joint.readers:
        replace_tensors(model, {r.weight.tensor: tensor_of(model, r.weight.tensor).detach() * norms[r.norm]})
    replace_tensors(model, {name: torch.ones_like(weight) for name, weight in norms.items()})
    return replace(joint, makers=tuple(axis for axis in joint.makers if axis.tensor not in norms))
