"""How many channels to remove from each coupling: fewer from those whose readers can do without them less well.

The curve of a coupling is exact: what its readers lose, as parts of the variance of what they say, as channel after
channel goes. `by_error` divides the multiplications that are to be saved among the curves.
"""

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lissom.calibrate import Batch, batches, call
from lissom.compress.layers import evaluating, look
from lissom.compress.reshape import as_it_is, few, joints_of
from lissom.errors import DataError, RecipeError
from lissom.formats import matrix_of
from lissom.models import compressible
from lissom.models.apart import apart
from lissom.models.couplings import Joint
from lissom.statistics import Gram
from lissom.techniques.prune.allocate import by_error
from lissom.techniques.prune.shrink import losses
from lissom.types import Step

AT = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def allocate_channels(model: nn.Module, data: Any, *, sparsity: float = 0.5, layers: str = "*") -> list[Step]:
    """A step for each coupling of channels of which `layers` matches a layer that makes them.

    Each is removed a fraction of; the mean over the multiplications of the layers that make and read them is
    `sparsity`. `model` stays as it is. The steps are those of an ordinary recipe:
    `compress_model(model, data, steps=allocate_channels(model, data, sparsity=0.5))`.

    Raises:
        RecipeError: the sparsity is none that can be, or no channels of these layers can be taken away.
        DataError: there is no data.
    """
    if not 0 <= sparsity <= AT[-1]:
        raise RecipeError(f"allocate_channels: sparsity={sparsity} must be from 0 to {AT[-1]}, such as 0.5")
    lot = list(batches(data))
    if not lot:
        raise DataError("data: no examples are in it (an iterator can be read once only; give a list or a DataLoader)")
    model = apart(copy.deepcopy(model))
    with evaluating(model):
        joints = {maker_of(joint, layers): joint for joint in joints_of(model, lot[0]) if joint.kind == "channels"}
        joints.pop("", None)
        if not joints:
            raise RecipeError(f"allocate_channels: no channels of layers={layers!r} can be taken away")
        curves = curves_of(model, list(joints.values()), lot).cpu()
        work = multiplications(model, few(lot[0]))
    sizes = torch.tensor([float(sum(work.get(name, 0) for name in joint.layers)) for joint in joints.values()])
    shares = by_error(curves, torch.tensor(AT, dtype=torch.float64), sizes.double(), sparsity)
    return [
        Step(layers=name, technique="channels", knobs={"sparsity": share})
        for name, share in zip(joints, shares.tolist(), strict=True)
    ]


def maker_of(joint: Joint, layers: str) -> str:
    """The first layer with a matrix that makes a coupling's channels and is meant, or an empty name."""
    makers = (axis.layer for axis in joint.makers if axis.tensor.endswith("weight"))
    return next((name for name in makers if fnmatchcase(name, layers)), "")


def curves_of(model: nn.Module, joints: list[Joint], lot: list[Batch]) -> Tensor:
    """What the readers of each coupling lose at each of the sparsities."""
    readers = {r.weight.layer: model.get_submodule(r.weight.layer) for joint in joints for r in joint.readers}
    seen = {name: found[Gram] for name, found in look(model, readers, {name: {Gram} for name in readers}, lot).items()}
    curves = []
    for joint in joints:
        lost = losses(*as_it_is(model, joint, seen))
        curves.append(lost[[int(at * joint.units) for at in AT]])
    return torch.stack(curves)


@torch.no_grad()
def multiplications(model: nn.Module, batch: Batch) -> Mapping[str, int]:
    """How many multiplications each layer makes for a batch."""
    found: dict[str, int] = {}

    def count(name: str) -> Any:
        def after(layer: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
            found[name] = found.get(name, 0) + made.numel() * matrix_of(layer).shape[1]

        return after

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = {name: layer for name, layer in compressible(model).items() if isinstance(layer, kinds)}
    handles = [layer.register_forward_hook(count(name)) for name, layer in layers.items()]
    try:
        call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
