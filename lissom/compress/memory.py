"""Any module in memory, compressed: a copy of it, trainable, and the original left as it is."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lissom.calibrate import Batch, batches, call
from lissom.calibrate.observe import Collected
from lissom.compress.couple import check_coupled, couple, links_of
from lissom.compress.layers import act, act_together, back, evaluating, look, matrices, replace, said, weight_of
from lissom.compress.plan import Plan, phases, wanted
from lissom.compress.reshape import check_joined, joints_of, reshape
from lissom.compress.tune import tune
from lissom.compress.whole import check_whole, settle
from lissom.errors import ModelError, RecipeError
from lissom.formats import LowRank, Palette, Sum
from lissom.models import compressible
from lissom.techniques import MODEL
from lissom.techniques.quantize.tuned import Lots
from lissom.types import Recipe, Step

DEFAULT = (
    Step(technique="sparsegpt", knobs={"sparsity": 0.4}),
    Step(technique="kmeans", knobs={"bits": 4, "rows": 0}),
)


def compress_model(model: nn.Module, data: Any = None, *, steps: Sequence[Any] = DEFAULT) -> nn.Module:
    """A copy of `model` with its layers compressed; by default two in five weights pruned, the rest sharing 16 values.

    The result is trainable: gradients reach what its format can move, and it stays in its format. The model given is
    left as it is.

    Args:
        model: any torch module; its Linear, Conv and Embedding layers are the ones that steps can name.
        data: batches to calibrate on, as a tensor, (inputs, targets), or an iterable of either. Without data every
            input is taken to matter alike.
        steps: a recipe's steps, as `Step` or as mappings such as {"layers": "*", "technique": "gptq", "bits": 4}.

    Raises:
        RecipeError: a step names a technique, knob or value that cannot work, or layers that are not there.
        ModelError: the model has no layer that can be compressed.
        DataError: the data is in no form described above.
    """
    recipe = Recipe.of(list(steps))
    compressed = copy.deepcopy(model)
    layers = compressible(compressed)
    if not layers:
        raise ModelError(f"{type(model).__name__} has no Linear, Conv or Embedding layer of its own to compress")
    if "" in layers:
        raise ModelError(f"{type(model).__name__} is a layer by itself; put it in torch.nn.Sequential to compress it")
    plan = phases(recipe, layers)
    check_whole(plan)
    once = len(plan) == 1 and plan[0].grain == "layer" and not back(wanted(plan[0].plan))
    lot = data if data is None or once else list(batches(data))
    with evaluating(model), evaluating(compressed):
        originals = matrices(compressed)
        for phase in plan:
            layers = compressible(compressed)
            phase = dataclasses.replace(phase, plan=phase.on(layers))  # blocks may have gone
            if phase.grain == "layer":
                statistics = {} if lot is None else look(compressed, layers, phase.plan, lot)
                replace(compressed, act(layers, phase.plan, statistics, originals), layers, trainable=True)
            elif phase.grain == "several":
                statistics = {} if lot is None else look(compressed, layers, phase.plan, lot)
                replace(compressed, act_together(layers, phase, statistics), layers, trainable=True)
            elif phase.grain == "coupling":
                links = links_of(compressed, None if lot is None else next(iter(lot), None))
                check_coupled(phase, links)
                couple(compressed, phase, links, originals, partial(seen_by, compressed, lot))
            elif phase.grain == "shape":
                joints = joints_of(compressed, None if lot is None else next(iter(lot), None))
                check_joined(phase, joints)
                reshape(compressed, phase, joints, originals, partial(seen_by, compressed, lot))
                settle(compressed)
            elif phase.grain == "model":
                for step in phase.steps:
                    MODEL[step.technique](compressed, taught(model, compressed, lot), **step.knobs)
                settle(compressed)
                originals = matrices(compressed)
            else:
                tune(compressed, phase, originals, taught(model, compressed, lot))
    return compressed


def seen_by(model: nn.Module, data: Any, layers: Mapping[str, nn.Module], plan: Plan) -> dict[str, Collected]:
    """What layers are given when a model runs on the data, if there is any."""
    return {} if data is None else look(model, layers, plan, data)


def taught(teacher: nn.Module, student: nn.Module, data: Any) -> Lots:
    """How to run the student on each batch, and what the teacher says to it."""
    with torch.no_grad():
        lots = batches([] if data is None else data)
        return [(partial(answer, student, batch), answer(teacher, batch)) for batch in lots]


def answer(model: nn.Module, batch: Batch) -> Tensor:
    """What a model says to a batch."""
    return said(model, call(model, batch))


def quantize_model(model: nn.Module, data: Any = None, *, bits: int | str = 8) -> nn.Module:
    """A copy of `model` with integer weights of 8 to 2 bits, or "binary" ones; trainable, straight through.

    Pruned weights stay zero, shared weights stay shared. With data, 4 bits and fewer are rounded by GPTQ, otherwise to
    the nearest point of a grid with a searched range. Below 8 bits groups of up to 128 inputs have a scale of their
    own where the layer's width allows.

    Raises:
        RecipeError: the bits are none of those.
        ModelError, DataError: as for `compress_model`.
    """
    if bits not in (*range(2, 9), "binary"):
        raise RecipeError(f'quantize_model: bits={bits!r} is not possible; choose 8 to 2, or "binary"')
    steps = [quantizing(name, layer, bits, data is not None) for name, layer in compressible(model).items()]
    return compress_model(model, data, steps=steps)


def quantizing(name: str, layer: nn.Module, bits: int | str, calibrated: bool) -> Step:
    """The step that suits one layer."""
    if bits == "binary":
        return Step(layers=name, technique="binary")
    weight = weight_of(layer)
    shared = isinstance(weight, Palette) and isinstance(bits, int) and weight.bits <= bits
    knobs: dict[str, Any] = {"bits": bits}
    if bits != 8 and not shared:
        knobs["group"] = next((size for size in (128, 64, 32) if weight.shape[1] % size == 0), 0)
    nested = shared or isinstance(weight, LowRank | Sum)  # what it is made of is rounded, and it stays so made
    rounds_better = calibrated and bits != 8 and not nested and not isinstance(layer, nn.Embedding)
    return Step(layers=name, technique="gptq" if rounds_better else "rtn", knobs=knobs)
