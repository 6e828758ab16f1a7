"""The forms that a layer may take: a visible table of steps, and which layers must take the same one."""

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.calibrate.data import first_call
from lissom.calibrate.observe import CONVOLUTIONS
from lissom.engine.kernels.panels import QUARTET
from lissom.errors import ModelError
from lissom.formats import CompressedEmbedding
from lissom.models import Checkpoint, compressible, weight_of
from lissom.models.apart import set_apart
from lissom.types import Step

Steps = tuple[Step, ...]
ORIGINAL = "as it is"
SAFE = "8 bits"  # the form that every layer can take and that hardly any model notices
GROUPS = (128, 64, 32)  # inputs that share a scale: the most that divide a layer's inputs
CACHE = "keys and values"  # the unit of a language model that is no layer: how the engine holds them
HELD = {ORIGINAL: "auto", SAFE: "int8"}  # its forms; 4 bits run in PyTorch only
HALF = {"technique": "sparsegpt", "sparsity": 0.5}

# From what loses least to what takes least. GROUP stands for the layer's own, FINE for the narrowest of it.
GROUP, FINE = object(), object()
TELLING: Steps = (Step(technique="norms"),)  # after all else, where a batch norm is behind a layer
FORMS: dict[str, tuple[dict[str, object], ...]] = {
    ORIGINAL: (),
    SAFE: ({"technique": "rtn", "bits": 8},),
    "6 bits": ({"technique": "gptq", "bits": 6, "group": GROUP},),
    "5 bits": ({"technique": "gptq", "bits": 5, "group": GROUP},),
    "4 bits, fine": ({"technique": "gptq", "bits": 4, "group": FINE},),
    "4 bits": ({"technique": "gptq", "bits": 4, "group": GROUP},),
    "shared 4 bits": ({"technique": "kmeans", "bits": 4, "rows": 0},),
    "half pruned, 8 bits": (HALF, {"technique": "rtn", "bits": 8}),
    "3 bits": ({"technique": "gptq", "bits": 3, "group": GROUP},),
    "shared 3 bits": ({"technique": "kmeans", "bits": 3, "rows": 0},),
    "half pruned, 4 bits": (HALF, {"technique": "gptq", "bits": 4, "group": GROUP}),
    "2 bits": ({"technique": "gptq", "bits": 2, "group": FINE},),
    "binary": ({"technique": "binary"},),
}
LOOKED_UP = {  # tables, which have no inputs to tell what is listened to
    ORIGINAL: (),
    SAFE: FORMS[SAFE],
    "6 bits": ({"technique": "rtn", "bits": 6, "group": GROUP},),
    "5 bits": ({"technique": "rtn", "bits": 5, "group": GROUP},),
    "4 bits, fine": ({"technique": "rtn", "bits": 4, "group": FINE},),
    "4 bits": ({"technique": "rtn", "bits": 4, "group": GROUP},),
    "3 bits": ({"technique": "rtn", "bits": 3, "group": GROUP},),
}
ROWS = {  # whole numbers with one scale for each row, which is what circuits are made of
    "4 bits a row": ({"technique": "gptq", "bits": 4, "group": 0},),
    "3 bits a row": ({"technique": "gptq", "bits": 3, "group": 0},),
    "2 bits a row": ({"technique": "gptq", "bits": 2, "group": 0},),
    "half pruned, 4 bits a row": (HALF, {"technique": "gptq", "bits": 4, "group": 0}),
}
TIED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of a language model: read the same, run as one


HOPELESS = ("shared 3 bits", "binary")  # for a language model that does not train on


def forms_of(layer: nn.Module, *, language: bool = False, rows: bool = False, normed: bool = False) -> dict[str, Steps]:
    """The forms of a layer by name; such as do not suit it are refused when they are made.

    A convolution has one scale for each output, or in the fine forms for some whole channels of its inputs: a kernel
    that gathers patches with the channels innermost finds those side by side, and any other group far apart. With
    `rows` there are forms that share a scale along a whole row, where others do not do so anyway. Where a layer is
    `normed`, the batch norm behind it is told what has become of it.
    """
    width = weight_of(layer).shape[1]
    group = next((size for size in GROUPS if width % size == 0), 0)
    stands = {GROUP: group, FINE: GROUPS[-1] if group else 0}
    if isinstance(layer, CONVOLUTIONS):
        stands = {GROUP: 0, FINE: whole_channels(width, math.prod(layer.kernel_size))}
    table = LOOKED_UP if isinstance(layer, nn.Embedding | CompressedEmbedding) else FORMS
    if rows and stands[GROUP] and table is FORMS:
        table = {**FORMS, **ROWS}
    found: dict[str, Steps] = {}
    for name, given in ((name, given) for name, given in table.items() if not (language and name in HOPELESS)):
        steps = tuple(Step.of({knob: stands.get(value, value) for knob, value in step.items()}) for step in given)
        found[name] = (*steps, *TELLING) if steps and normed else steps
    if stands[GROUP] == stands[FINE]:
        found.pop("4 bits, fine", None)  # it is what 4 bits are
    return found


def whole_channels(width: int, taps: int) -> int:
    """Inputs of the fewest channels, some fours of them, that are as many as the narrowest group; 0 if it is all."""
    channels = width // taps
    fit = (size for size in range(QUARTET, channels, QUARTET) if channels % size == 0 and size * taps >= GROUPS[-1])
    return taps * next(fit, 0)


def units_of_module(model: nn.Module, example: Batch) -> dict[str, tuple[str, ...]]:
    """The layers of a module, those together that are given the same tensor or share a matrix; by the first's name.

    Raises:
        ModelError: the module has no layer that can be compressed.
    """
    model = set_apart(model)
    layers = compressible(model)
    if not layers:
        raise ModelError(f"{type(model).__name__} has no Linear, Conv or Embedding layer of its own to compress")
    given: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, x, name=name: given.setdefault(name, x[0]), prepend=True)
        for name, layer in layers.items()
    ]
    try:
        with torch.inference_mode():
            first_call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    same: dict[object, list[str]] = {}
    for name, layer in layers.items():
        key = next((k for k, names in same.items() if layers[names[0]].weight is layer.weight), None)
        same.setdefault(key or (id(given[name]) if name in given else name, type(layer)), []).append(name)
    return {names[0]: tuple(names) for names in same.values()}


def units_of_checkpoint(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The layers of a language model, siblings together; by the first's name."""
    found: dict[str, list[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        first = next((own[0] for own in TIED if last in own), last)
        found.setdefault(f"{parent}.{first}".strip("."), []).append(name)
    return {own[0]: tuple(own) for own in found.values()}


def kind_of(name: str, layers: Mapping[str, nn.Module]) -> str:
    """What is equal for layers that do the same work in different blocks: a name without numbers, and the shape."""
    shape = "x".join(map(str, weight_of(layers[name]).shape))
    return f"{re.sub(r'[0-9]+', '*', name)} {type(layers[name]).__name__} {shape}"
