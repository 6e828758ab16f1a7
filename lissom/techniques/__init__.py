"""The techniques: one file, one paper, one pure function (Weight, *Statistic, /, *, knobs) -> Weight."""

from collections.abc import Callable

from lissom.formats import Weight
from lissom.techniques.prune.magnitude import magnitude
from lissom.techniques.prune.sparsegpt import sparsegpt
from lissom.techniques.prune.wanda import wanda
from lissom.techniques.quantize.binary import binary
from lissom.techniques.quantize.gptq import gptq
from lissom.techniques.quantize.rtn import rtn
from lissom.techniques.share.kmeans import kmeans

TECHNIQUES: dict[str, Callable[..., Weight]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
    "kmeans": kmeans,
    "rtn": rtn,
    "gptq": gptq,
    "binary": binary,
}
