"""The table of targets: which formats run on each as they are, and how; which become another; and what is refused.

A new kernel is one line here, before those that are more general: the first line that fits a weight is its way.

    TPU: what `export/tpu` holds       FPGA: what `export/fpga` holds       CPU: what `engine/lower.py` swaps in
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How weights of some formats run on a target.

    Args:
        formats: their names, as `spec` has them.
        kernel: what runs them, in words.
        bits: of the codes, where only such run so.
        products: the type in which is multiplied, where it is not that of the model.
        decoded: whether the matrix is made anew at every call, in the model's type.
        becomes: what they are turned into, where they do not run as they are.
    """

    formats: tuple[str, ...]
    kernel: str = ""
    bits: tuple[int, ...] = ()
    products: str = ""
    decoded: bool = False
    becomes: str = ""

    def fits(self, spec: Mapping[str, Any]) -> bool:
        """Whether a weight goes this way."""
        return spec["format"] in self.formats and (not self.bits or spec.get("bits") in self.bits)

    @property
    def whose(self) -> str:
        """Which weights go so, in words."""
        bits = f" of {' or '.join(map(str, self.bits))} bits" if self.bits else ""
        return f"{', '.join(self.formats)}{bits}"

    @property
    def told(self) -> str:
        """What becomes of them, in words."""
        return f"becomes {self.becomes}" if self.becomes else self.kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of hardware: the ways that weights go on it, what no format helps there, and which devices can be named.

    `costs` says where its times come from when there is none of it here; or `compiled`, where all packages of its
    `compiler` are installed.
    """

    name: str
    ways: tuple[Way, ...]
    devices: tuple[str, ...] = ()
    refuses: str = ""
    costs: str = ""
    compiler: tuple[str, ...] = ()
    compiled: str = ""

    @property
    def told(self) -> str:
        """Where times come from when there is none of it here."""
        ready = self.compiler and all(find_spec(package) for package in self.compiler)
        return self.compiled if ready else self.costs


DECODED = "decoded at every call, then PyTorch"
SMALL_FLOATS = ("floats", "narrow", "xnor")
NO_INTEGERS = ("palette", "signs", *SMALL_FLOATS)

CPU = Kind(
    name="cpu",
    ways=(
        Way(formats=("dense",), kernel="PyTorch"),
        Way(formats=("affine", "palette", "ternary", "binary"), kernel="panels", products="int8"),
        Way(formats=("dynamic",), kernel="panels", products="int8"),
        Way(formats=("masked",), kernel="masked"),
        Way(formats=("signs",), kernel="signs"),
        Way(formats=("lowrank",), kernel="lowrank"),
        Way(formats=("sum",), kernel="sum"),
        Way(formats=("turned",), kernel="turned"),
        Way(formats=SMALL_FLOATS, kernel=DECODED, decoded=True),
    ),
)
CUDA = Kind(
    name="cuda",
    ways=(
        Way(formats=("dense",), kernel="PyTorch"),
        Way(formats=("lowrank", "sum", "turned"), kernel="PyTorch, part by part"),
        Way(formats=("affine", "palette", "binary", "floats"), kernel="Triton, decoded as it is read"),
        Way(formats=("dynamic",), kernel="Triton, products of bytes", products="int8"),
        Way(formats=("narrow",), kernel="Triton, products of small floats", products="fp8"),
        Way(formats=("masked", "signs", "ternary", "xnor"), kernel=DECODED, decoded=True),
    ),
    devices=("h100", "h200", "b200", "a100", "mi300x"),
    costs="costed by the data sheet",
)
TPU = Kind(
    name="tpu",
    ways=(
        Way(formats=("dense",), kernel="XLA"),
        Way(formats=("affine", "ternary", "binary"), kernel="XLA, integers of 4 or 8 bits"),
        Way(formats=("dynamic",), kernel="XLA, integers of 4 or 8 bits, and inputs of 8", products="int8"),
        Way(formats=("masked",), kernel="XLA, as a dense matrix: no chip skips zeros"),
        Way(formats=("lowrank", "sum", "turned"), kernel="XLA, part by part"),
        Way(formats=NO_INTEGERS, becomes="8 bits in groups of 32"),
    ),
    devices=("v5e", "v5p", "v6e"),
    costs="costed by the data sheet",
    compiler=("jax", "libtpu", "torchax"),
    compiled="costed by the data sheet, of what its compiler makes ahead of time",
)
FPGA = Kind(
    name="fpga",
    ways=(
        Way(
            formats=("affine", "ternary", "binary", "dynamic"), kernel="hls4ml, whole numbers with a scale for each row"
        ),
        Way(formats=("dense", "masked", *NO_INTEGERS), becomes="8 bits with a scale for each row"),
        Way(formats=("lowrank", "sum", "turned"), becomes="8 bits with a scale for each row"),
    ),
    devices=("xcu250-figd2104-2L-e", "xczu7ev-ffvc1156-2-e", "xc7z020clg400-1"),
    refuses="language models, attention, embeddings and sums of branches; groups of inputs become 8 bits a row",
    costs="costed by counting its circuit",
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (CPU, CUDA, TPU, FPGA)}


def as_dict(kind: Kind) -> dict[str, Any]:
    """A kind of hardware as JSON holds it, its ways in their order."""
    devices = [f"{kind.name}:{device}" for device in kind.devices]
    ways = [asdict(way) for way in kind.ways]
    return {"kind": kind.name, "devices": devices, "ways": ways, "refuses": kind.refuses}


def way_of(kind: str, spec: Mapping[str, Any]) -> Way:
    """The way of a weight on a kind of hardware, by its `spec`."""
    return next(way for way in KINDS[kind].ways if way.fits(spec))
