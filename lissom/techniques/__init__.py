"""The techniques: one file, one paper, one function, in tables by how much of a model it must see at once.

    LAYER       (Weight, [the original Weight,] *Statistic, /, *, knobs) -> Weight
    COUPLING    (Coupling, *Statistic, /, *, knobs) -> Coupling
    SHAPE       (Coupling, tuple[Gram, ...], /, *, knobs) -> Coupling of fewer channels, or in another order
    STREAM      (Coupling, /, *, knobs) -> Coupling: the residual stream of a language model, as many channels as before
    NORM        (Norm, Weight, the original Weight, Gram, /, *, knobs) -> Norm: the batch norm behind a layer
    SEVERAL     (Sequence[tuple[Weight, Gram]], /, *, knobs) -> list[Weight]: the layers that one step names, together
    BLOCK       (nn.Module, Lots, /, *, knobs) -> None: a block, or the whole of a module that is not a language model
    MODEL       (nn.Module, Lots, /, *, knobs) -> None: the whole

A shape technique is given a Gram for each reader. The first six are pure; the others change the module they are
given. For `STREAM`, `SEVERAL` and `MODEL` the whole model must be in memory.
"""

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lissom.coupling import Coupling
from lissom.formats import Weight
from lissom.techniques.prune.alps import alps
from lissom.techniques.prune.blocks import blocks
from lissom.techniques.prune.channels import channels
from lissom.techniques.prune.heads import heads
from lissom.techniques.prune.magnitude import magnitude
from lissom.techniques.prune.permute import permute
from lissom.techniques.prune.permute_stream import permute_stream
from lissom.techniques.prune.ria import ria
from lissom.techniques.prune.sparsegpt import sparsegpt
from lissom.techniques.prune.wanda import wanda
from lissom.techniques.prune.width import width
from lissom.techniques.quantize.awq import awq
from lissom.techniques.quantize.binary import binary
from lissom.techniques.quantize.dynamic import dynamic
from lissom.techniques.quantize.floats import floats
from lissom.techniques.quantize.gptq import gptq
from lissom.techniques.quantize.hadamard import hadamard
from lissom.techniques.quantize.nanoquant import nanoquant
from lissom.techniques.quantize.rotate import rotate
from lissom.techniques.quantize.rotate_stream import rotate_stream
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.quantize.smooth import smooth
from lissom.techniques.quantize.ternary import ternary
from lissom.techniques.quantize.tuned import tuned
from lissom.techniques.quantize.xnor import xnor
from lissom.techniques.quantize.yaqa import yaqa
from lissom.techniques.recover.distil import distil
from lissom.techniques.recover.norms import Norm, norms
from lissom.techniques.share.kmeans import kmeans
from lissom.techniques.share.lnq import lnq
from lissom.techniques.share.lowrank import lowrank
from lissom.techniques.share.residual import residual
from lissom.techniques.share.tie import tie
from lissom.techniques.share.vectors import vectors

LAYER: dict[str, Callable[..., Weight]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "ria": ria,
    "sparsegpt": sparsegpt,
    "alps": alps,
    "kmeans": kmeans,
    "lnq": lnq,
    "vectors": vectors,
    "lowrank": lowrank,
    "residual": residual,
    "hadamard": hadamard,
    "rtn": rtn,
    "gptq": gptq,
    "yaqa": yaqa,
    "dynamic": dynamic,
    "floats": floats,
    "binary": binary,
    "ternary": ternary,
    "nanoquant": nanoquant,
    "xnor": xnor,
}

COUPLING: dict[str, Callable[..., Coupling]] = {
    "smooth": smooth,
    "awq": awq,
    "rotate": rotate,
}

SHAPE: dict[str, Callable[..., Coupling]] = {
    "channels": channels,
    "heads": heads,
    "width": width,
    "permute": permute,
    "permute_stream": permute_stream,
}
KINDS: dict[str, tuple[str, ...]] = {  # the couplings that they act on, where the name does not say it
    "permute": ("channels", "values"),
    "permute_stream": ("width", "order"),
    "rotate_stream": ("width",),
}

STREAM: dict[str, Callable[..., Coupling]] = {
    "rotate_stream": rotate_stream,
}

NORM: dict[str, Callable[..., Norm]] = {
    "norms": norms,
}

SEVERAL: dict[str, Callable[..., Sequence[Weight]]] = {
    "tie": tie,
}

BLOCK: dict[str, Callable[..., None]] = {
    "tuned": tuned,
}

MODEL: dict[str, Callable[..., None]] = {
    "blocks": blocks,
    "distil": distil,
}

# All of them, in this order; what is added to a table is here too.
TECHNIQUES: Mapping[str, Callable[..., Any]] = ChainMap(MODEL, BLOCK, SEVERAL, NORM, STREAM, SHAPE, COUPLING, LAYER)
