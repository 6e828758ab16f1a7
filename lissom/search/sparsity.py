"""How much to remove from each layer: less from those that the predictions hang on.

Every layer is pruned to a few sparsities by the technique itself, one layer at a time; the KL that `sensitivity`
foresees for each gives a curve, and `by_error` divides what is to be removed among the curves.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lissom.errors import RecipeError
from lissom.models import compressible, weight_of
from lissom.models.apart import set_apart
from lissom.search.sensitivity import sensitivity
from lissom.techniques.contract import check, knobs
from lissom.techniques.prune.allocate import by_error
from lissom.types import Step

REACH = (-0.2, -0.1, 0.0, 0.1, 0.2)  # how far layers may be from the sparsity asked
MOST = 0.95


def allocate_sparsity(
    model: nn.Module, data: Any, *, sparsity: float = 0.5, technique: str = "alps", layers: str = "*"
) -> list[Step]:
    """A step for each layer that `layers` matches; the mean over their weights is `sparsity`.

    `model` gives class or token logits; it stays as it is. The steps are those of an ordinary recipe:
    `compress_model(model, data, steps=allocate_sparsity(model, data, sparsity=0.5))`.

    Raises:
        RecipeError: the technique removes no fraction of the weights, the sparsity is none, or no layer matches.
        DataError, ModelError: as for `sensitivity`.
    """
    check(Step(technique=technique))
    if "sparsity" not in knobs(technique):
        raise RecipeError(f"allocate_sparsity: {technique} has no knob 'sparsity'; try alps, sparsegpt or wanda")
    if not 0 <= sparsity <= MOST:
        raise RecipeError(f"allocate_sparsity: sparsity={sparsity} must be from 0 to {MOST}, such as 0.5")
    model = set_apart(model)
    weights = {name: weight_of(layer) for name, layer in compressible(model).items() if fnmatchcase(name, layers)}
    if not weights:
        raise RecipeError(f"allocate_sparsity: layers={layers!r} names no layer of the model")
    at = sorted({min(max(round(sparsity + reach, 6), 0.0), MOST) for reach in REACH})
    steps = [Step(technique=technique, knobs={"sparsity": point}) for point in at]
    found = sensitivity(model, data, {name: [(step,) for step in steps] for name in weights})
    errors = torch.tensor([[option.kl for option in found[name]] for name in weights])
    sizes = torch.tensor([float(weight.shape[0] * weight.shape[1]) for weight in weights.values()])
    shares = by_error(errors, torch.tensor(at, dtype=torch.float64), sizes.double(), sparsity)
    return [
        Step(layers=name, technique=technique, knobs={"sparsity": share})
        for name, share in zip(weights, shares.tolist(), strict=True)
    ]
