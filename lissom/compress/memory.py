"""Any module in memory, compressed: a copy of it, trainable, and the original left as it is."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lissom.calibrate import Batch, batches
from lissom.calibrate.besides import read_besides
from lissom.calibrate.merge import union
from lissom.calibrate.norms import norms_behind
from lissom.calibrate.observe import Collected
from lissom.compress.couple import check_coupled, couple, links_of
from lissom.compress.layers import act, act_together, back, check_alone, evaluating, look, matrices
from lissom.compress.norms import tell_norms
from lissom.compress.plan import Phase, Plan, phases, wanted
from lissom.compress.reshape import check_joined, few, joints_of, reshape
from lissom.compress.taught import Taught
from lissom.compress.tune import tune
from lissom.compress.turn import turn
from lissom.compress.whole import at_once, check_whole, settle
from lissom.errors import DataError, ModelError, RecipeError
from lissom.formats import LowRank, Palette, Sum, Weight, Xnor, unfreeze
from lissom.models import compressible, replace, weight_of
from lissom.models.apart import apart, set_apart
from lissom.models.layers import check_finite, check_module, leave
from lissom.types import Recipe, Step

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

DEFAULT = (
    Step(technique="sparsegpt", knobs={"sparsity": 0.4}),
    Step(technique="kmeans", knobs={"bits": 4, "rows": 0}),
)
FEWEST = ("ternary", "binary")  # techniques that are a number of bits by themselves


def compress_model(
    model: nn.Module, data: Any = None, *, steps: Sequence[Any] = DEFAULT, group: "ProcessGroup | None" = None
) -> nn.Module:
    """A copy of `model` with its layers compressed; by default two in five weights pruned, the rest sharing 16 values.

    The result is trainable: gradients reach what its format can move, and it stays in its format. The model given is
    left as it is.

    Args:
        model: any torch module; its Linear, Conv and Embedding layers are the ones that steps can name, and the layers
            q_proj, k_proj, v_proj and out_proj of torch.nn's attention.
        data: batches to calibrate on, as a tensor, (inputs, targets), or an iterable of either. Without data every
            input is taken to matter alike.
        steps: a recipe's steps, as `Step` or as mappings such as {"layers": "*", "technique": "gptq", "bits": 4}.
        group: several processes, each of which calls this with its share of the data: all get the model that one would
            have made of all of it, but for the order of sums. Not for steps that learn, or hear the end loss.

    Raises:
        RecipeError: a step names a technique, knob or value that cannot work, or layers that are not there.
        ModelError: the model has no layer that can be compressed, or holds numbers that are not finite.
        DataError: the data is in no form described above, or the model makes numbers of it that are not finite.
    """
    check_module(model)
    recipe = Recipe.of(list(steps))
    compressed = apart(copy.deepcopy(model))
    data, first = peeked(data)
    leave(compressed, read_by_others(compressed, first, group))
    layers = compressible(compressed)
    if not layers:
        raise ModelError(f"{type(model).__name__} has no Linear, Conv or Embedding layer of its own to compress")
    if "" in layers:
        raise ModelError(f"{type(model).__name__} is a layer by itself; put it in torch.nn.Sequential to compress it")
    check_finite(compressed.named_parameters(), type(model).__name__)
    plan = phases(recipe, layers)
    check_whole(plan)
    heard = any(back(wanted(phase.plan)) for phase in plan)
    if heard:
        unfreeze(compressed)  # for gradients to pass
    once = len(plan) == 1 and plan[0].grain == "layer" and not heard
    lot = data if data is None or once else list(batches(data))
    with evaluating(model), evaluating(compressed):
        work = Work(original=model, model=compressed, data=lot, originals=matrices(compressed), group=group)
        for phase in plan:
            here = dataclasses.replace(phase, plan=phase.anew(compressible(compressed)))
            CONDUCT[phase.grain](work, here)
    return compressed


def peeked(data: Any) -> tuple[Any, Batch | None]:
    """Data as it was given, and its first batch, if there is any."""
    if data is None:
        return None, None
    lots = batches(data)
    first = next(lots, None)
    ahead = () if first is None else (first,)
    return chain(ahead, lots) if isinstance(data, Iterator) else data, first


def read_by_others(model: nn.Module, batch: Batch | None, group: "ProcessGroup | None" = None) -> set[str]:
    """The layers whose tensors the model's own code reads as it runs on a batch, of any process."""
    layers, found = compressible(model), set[str]()
    if batch is not None:
        with evaluating(model):
            try:
                found = read_besides(model, layers, few(batch))
            except DataError:  # a model may take batches of one size alone; else the error says what was given
                found = read_besides(model, layers, batch)
    return found if group is None else union(found, list(layers), group)


@dataclass(slots=True, kw_only=True)
class Work:
    """A model being compressed, beside the original; `originals` are its weights before the first step."""

    original: nn.Module
    model: nn.Module
    data: Any
    originals: dict[str, Weight]
    group: "ProcessGroup | None" = None

    def layer(self, phase: Phase) -> None:
        """Each layer by itself."""
        layers = compressible(self.model)
        new = act(layers, phase.plan, self.seen(layers, phase.plan), self.originals)
        replace(self.model, new, layers, trainable=True)

    def several(self, phase: Phase) -> None:
        """The layers that a step names, together."""
        layers = compressible(self.model)
        replace(self.model, act_together(layers, phase, self.seen(layers, phase.plan)), layers, trainable=True)

    def coupling(self, phase: Phase) -> None:
        """Channels that layers share, as many as before."""
        links = links_of(self.model, self.example())
        check_coupled(phase, links)
        couple(self.model, phase, links, self.originals, self.seen)

    def shape(self, phase: Phase) -> None:
        """Channels that layers share, fewer than before."""
        joints = joints_of(self.model, self.example())
        check_joined(phase, joints)
        reshape(self.model, phase, joints, self.originals, self.seen)
        settle(self.model)

    def stream(self, phase: Phase) -> None:
        """The residual stream of a language model."""
        for step in phase.steps:
            turn(self.model, step, self.originals)

    def norm(self, phase: Phase) -> None:
        """Batch norms behind layers."""

        def given(model: nn.Module, layers: Mapping[str, nn.Module], plan: Plan) -> dict[str, Collected]:
            return look(model, layers, wanted(plan), self.data, self.group)

        tell_norms(self.model, self.original, phase, self.example(), self.originals, given)

    def block(self, phase: Phase) -> None:
        """The whole, as one block."""
        tune(self.model, phase, self.originals, self.taught())

    def whole(self, phase: Phase) -> None:
        """What must see everything."""
        for step in phase.steps:
            self.originals = at_once(step, self.model, self.originals, self.taught())

    def example(self) -> Batch | None:
        """The first batch, if there is any data."""
        return None if self.data is None else next(iter(self.data), None)

    def seen(self, layers: Mapping[str, nn.Module], plan: Plan) -> dict[str, Collected]:
        """What layers are given when the model runs on the data, if there is any."""
        return {} if self.data is None else look(self.model, layers, wanted(plan), self.data, self.group)

    def taught(self) -> Taught:
        """How to run the model on each batch, and what the original says to it.

        Raises:
            RecipeError: there are several processes, which would each learn something else.
        """
        check_alone(self.group, (), learns=True)
        return Taught.of(self.model, self.original, self.data)


CONDUCT: dict[str, Callable[[Work, Phase], None]] = {
    "layer": Work.layer,
    "several": Work.several,
    "coupling": Work.coupling,
    "shape": Work.shape,
    "stream": Work.stream,
    "norm": Work.norm,
    "block": Work.block,
    "model": Work.whole,
}


def quantize_model(model: nn.Module, data: Any = None, *, bits: int | str = 8) -> nn.Module:
    """A copy of `model` with integer weights of 8 to 2 bits, "ternary" or "binary" ones; it trains, straight through.

    Pruned weights stay zero, shared weights stay shared. With data, 4 bits and fewer are rounded by GPTQ, otherwise to
    the nearest point of a grid with a searched range. Below 8 bits groups of up to 128 inputs have a scale of their
    own where the layer's width allows, and with data batch norms behind layers are told how these have moved (`norms`).

    Raises:
        RecipeError: the bits are none of those.
        ModelError, DataError: as for `compress_model`.
    """
    if bits not in (*range(2, 9), *FEWEST):
        raise RecipeError(f'quantize_model: bits={bits!r} is not possible; choose 8 to 2, "ternary" or "binary"')
    check_module(model)
    model = set_apart(model)
    data, first = peeked(data)
    layers = compressible(model)
    left = read_by_others(model, first)
    steps = [quantizing(name, own, bits, data is not None) for name, own in layers.items() if name not in left]
    if first is not None and bits != 8 and any(isinstance(part, _BatchNorm) for part in model.modules()):
        steps += telling(model, first)
    return compress_model(model, data, steps=steps)


def telling(model: nn.Module, batch: Batch) -> list[Step]:
    """Steps for the batch norms that are alone behind layers; not of such as read signs."""
    layers = compressible(model)
    with evaluating(model):
        behind = norms_behind(model, layers, few(batch))
    return [Step(layers=name, technique="norms") for name in behind if not isinstance(weight_of(layers[name]), Xnor)]


def quantizing(name: str, layer: nn.Module, bits: int | str, calibrated: bool) -> Step:
    """The step that suits one layer."""
    if isinstance(bits, str):
        return Step(layers=name, technique=bits)
    weight = weight_of(layer)
    shared = isinstance(weight, Palette) and weight.bits <= bits
    knobs: dict[str, Any] = {"bits": bits}
    if bits != 8 and not shared:
        knobs["group"] = next((size for size in (128, 64, 32) if weight.shape[1] % size == 0), 0)
    nested = shared or isinstance(weight, LowRank | Sum)  # what it is made of is rounded, and it stays so made
    rounds_better = calibrated and bits != 8 and not nested and not isinstance(layer, nn.Embedding)
    return Step(layers=name, technique="gptq" if rounds_better else "rtn", knobs=knobs)
