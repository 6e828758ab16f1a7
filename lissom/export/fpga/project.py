"""A module as a project of high-level synthesis, by hls4ml, and as QONNX, for an FPGA.

Weights stay the whole numbers that they are, with a scale for each row; between layers are numbers in fixed point, of
which the data say how large they get. What that loses is measured: the project's C++ is compiled and simulated on the
data, and compared with the definition in whole numbers, bit for bit, and with the artifact. What it takes on the chip
is estimated by counting, for no vendor's tools are needed here.

The folder: `hls`, the project, ready for Vitis HLS; `model.qonnx.onnx`; `report.json`.
"""

import contextlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lissom.artifact.manifest import building
from lissom.calibrate import batches
from lissom.errors import ArtifactError, DataError, ModelError, RecipeError, reason
from lissom.export.fpga import circuit, qonnx
from lissom.export.fpga.chain import chain, in_fixed_point
from lissom.export.fpga.fixed import FACTORS, Fixed, Network, Product
from lissom.export.grid import grid_of
from lissom.export.handover import Form, Given
from lissom.formats import Dense, Masked, Weight
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn

PART, PROJECT = "xcu250-figd2104-2L-e", "lissom"
MODES = "RND_CONV,SAT"  # to the nearest, halves to even; what is too large becomes the largest
OPTIONS = ("part", "clock_ns", "reuse", "bits", "calibration")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulated:
    """What the compiled project says of examples, what hls4ml warned of, and how often it uses multipliers."""

    numbers: np.ndarray
    warnings: list[str]
    reuse: dict[str, int]


def holds(weight: Weight, layer: nn.Module) -> Form | None:
    """The form that holds a weight as it is: whole numbers and a scale for each row."""
    grid = grid_of(weight)
    if grid is None or grid.scale_of(weight.shape[1]) is None:
        return None
    bits = circuit.bits_of(grid.codes.numpy())
    name = "one bit" if bits == 1 else f"int{bits}"
    zeros = "" if (grid.codes != 0).all() else f", {float((grid.codes == 0).float().mean()):.0%} zeros"
    return Form(name=f"{name}, a scale for each row{zeros}", bits=bits + FACTORS / weight.shape[1])


def nearest(weight: Weight, layer: nn.Module) -> Weight:
    """Eight bits with a scale for each row; what was pruned stays 0."""
    kept, dense = weight.kept(), weight.dense()
    held = Dense(values=dense) if kept is None else Masked.of(dense, kept)
    return rtn(held, Moments.blank(dense.shape[1], dense.device), bits=8, clip=False)


def write(
    given: Given,
    taken: Mapping[str, Weight],
    out: Path,
    *,
    data: Any,
    calibration: Any = None,
    part: str = PART,
    clock_ns: float = 5.0,
    reuse: int = 1,
    bits: int = 8,
) -> dict[str, Any]:
    """A folder with the project, the network as QONNX, and the report, which is also what comes back.

    Args:
        given: the opened model.
        taken: its weights as they are taken.
        out: the folder to make.
        data: examples on which all is compared; with classes for accuracy.
        calibration: examples that say how large numbers get; those of `data` where it is not given.
        part: the chip.
        clock_ns: how long a cycle is.
        reuse: how many products share a multiplier.
        bits: of the numbers between layers.

    Raises:
        RecipeError: hls4ml, qonnx or g++ are not there, or a number is out of range.
        DataError: there are no examples.
        ModelError: it is no chain of layers that can be built.
        ArtifactError: the disk is full, or the project does not compile.
    """
    check(reuse, bits)
    if given.config is not None:
        raise ModelError(f"{given.folder} is a language model, and an FPGA is given modules of a few layers")
    numbers, targets = examples(data)
    seen = numbers if calibration is None else examples(calibration)[0]
    network = in_fixed_point(chain(given.changed(taken)), seen, bits)
    forms = {name: form.name for name, weight in taken.items() if (form := holds(weight, given.model))}
    found: dict[str, Any] = {"part": part, "clock_ns": clock_ns, "bits": bits, "estimates": circuit.__doc__}
    with building(out) as folder:
        written = qonnx.model_of(network)
        written.save(str(folder / "model.qonnx.onnx"))
        said = simulate(network, numbers.double().numpy(), folder / "hls", part, clock_ns, reuse)
        run = qonnx.run(written, numbers.double().numpy())
        found |= {"warnings": said.warnings} | circuit.table(network, forms, said.reuse)
        found |= {"latency_ns": found["total"]["cycles"] * clock_ns}
        found |= compared(given.model, network, numbers, targets, said.numbers, run)
        (folder / "report.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def check(reuse: int, bits: int) -> None:
    """See that the packages are there and the numbers in range.

    Raises:
        RecipeError: they are not.
    """
    try:
        import hls4ml  # noqa: F401
        import qonnx.core.modelwrapper  # noqa: F401
    except ImportError as error:
        raise RecipeError(f"fpga: {error.name} is not installed; pip install 'lissom[fpga]'") from None
    if shutil.which("g++") is None:
        raise RecipeError("fpga: the simulation is compiled with g++, which is not here; install it")
    if reuse < 1 or not 2 <= bits <= 16:
        raise RecipeError(f"fpga: reuse {reuse} and bits {bits} cannot be; give reuse from 1, and bits from 2 to 16")


def examples(data: Any) -> tuple[Tensor, Tensor | None]:
    """All inputs of data, and all targets where there are any.

    Raises:
        DataError: there are none, or they are no tensors of numbers.
    """
    if data is None:
        raise DataError("fpga: the ranges of numbers are taken from data; give some, an .npz file with arrays x and y")
    pairs = [lot if isinstance(lot, tuple) else (lot,) for lot in batches(data) if not isinstance(lot, Mapping)]
    if not pairs:
        raise DataError("fpga: takes batches of inputs, or of (inputs, targets); there are none in data")
    numbers = torch.cat([pair[0] for pair in pairs]).float()
    targets = torch.cat([pair[-1] for pair in pairs]) if all(len(pair) == 2 for pair in pairs) else None
    if len(numbers) < 2 or not numbers.isfinite().all():
        raise DataError(f"fpga: {len(numbers)} examples, all finite, cannot be compared; give two or more")
    return numbers, targets


def precision(kind: Fixed, modes: str = MODES) -> str:
    """A type as hls4ml names it."""
    return f"{'' if kind.signed else 'u'}fixed<{kind.bits},{kind.bits - kind.point},{modes}>"


def settings(network: Network, model: Any, reuse: int) -> dict[str, Any]:
    """What hls4ml is told of each layer: types in which sums are exact, and how often a multiplier is used."""
    import hls4ml

    strategy = "Latency" if reuse == 1 else "Resource"
    found: dict[str, Any] = hls4ml.utils.config_from_onnx_model(model, backend="Vitis", default_reuse_factor=reuse)
    found["Model"]["Strategy"] = strategy
    layers = found["LayerName"]
    layers[qonnx.INPUT]["Precision"]["result"] = precision(network.entry)
    kind = network.entry
    for stage, (_, after) in zip(network.stages, network.maps(), strict=True):
        if isinstance(stage, Product):
            name, whole = qonnx.label(stage.name), precision(circuit.sums_type(stage.codes, kind), "TRN,WRAP")
            layers[f"{name}_product"] |= {"Strategy": strategy}
            layers[f"{name}_product"]["Precision"] |= {"accum": whole, "bias": "ufixed<1,1>"}
            layers[f"{name}_moved"]["Precision"] |= {"bias": precision(qonnx.bias_type(stage))}
            layers[f"{name}_moved"]["ReuseFactor"] = reuse * circuit.places(after)
        kind = stage.out
    return found


def simulate(network: Network, numbers: np.ndarray, folder: Path, part: str, clock_ns: float, reuse: int) -> Simulated:
    """Write the project, compile it as a program for this machine, and run it on examples.

    Raises:
        ArtifactError: it does not compile.
    """
    told, inputs = io.StringIO(), numbers.transpose(0, 2, 3, 1) if numbers.ndim == 4 else numbers
    with contextlib.redirect_stdout(told), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a package that is not ours
        built = project(network, folder, part, clock_ns, reuse)
        try:
            built.compile()
        except Exception as error:  # hls4ml raises nothing more exact
            raise ArtifactError(f"fpga: {reason(error)}: {told.getvalue().strip().splitlines()[-1:]}") from None
        found: np.ndarray = built.predict(np.ascontiguousarray(inputs, np.float64))
    tidy(folder)
    return Simulated(
        numbers=found.reshape(len(numbers), -1),
        warnings=[line.strip() for line in told.getvalue().splitlines() if line.strip().startswith("WARNING")],
        reuse={stage.name: used(built, qonnx.label(stage.name)) for stage in network.stages},
    )


def project(network: Network, folder: Path, part: str, clock_ns: float, reuse: int) -> Any:
    """The project as hls4ml makes it of QONNX."""
    import hls4ml

    model = qonnx.model_of(network, last=True)
    return hls4ml.converters.convert_from_onnx_model(
        model,
        output_dir=str(folder),
        project_name=PROJECT,
        backend="Vitis",
        hls_config=settings(network, model, reuse),
        part=part,
        clock_period=clock_ns,
        io_type="io_parallel",
    )


def tidy(folder: Path) -> None:
    """Take out of a project the compiled library, the name of the folder that it was made in, and the network.

    hls4ml writes the network into its settings as an object of Python, with which it does not read them again.
    """
    for file in folder.rglob("*.so"):
        file.unlink()
    config = folder / "hls4ml_config.yml"
    text = re.sub(r"^OnnxModel:.*\n(?: .*\n)*", "", config.read_text(encoding="utf-8"), flags=re.MULTILINE)
    config.write_text(text.replace(str(folder), "."), encoding="utf-8")


def used(built: Any, name: str) -> int:
    """How many products share a multiplier of a layer, as hls4ml has settled it."""
    named = (layer for layer in built.get_layers() if layer.name.endswith(f"{name}_product"))
    return int(next((layer.get_attr("reuse_factor") for layer in named), 1))


def compared(
    model: nn.Module,
    network: Network,
    numbers: Tensor,
    targets: Tensor | None,
    simulated: np.ndarray,
    run: np.ndarray,
) -> dict[str, Any]:
    """How the simulation, QONNX and the artifact agree on examples."""
    defined = network.run(numbers.double().numpy()).reshape(len(numbers), -1)
    with torch.inference_mode():
        own = model(numbers).double().numpy().reshape(len(numbers), -1)
    found: dict[str, Any] = {
        "examples": len(numbers),
        "bit_exact": int((simulated == defined).all(1).sum()),
        "qonnx_same": int((run.reshape(defined.shape) == defined).all(1).sum()),
        "largest_difference": float(np.abs(simulated - own).max()),
        "mean_difference": float(np.abs(simulated - own).mean()),
        "same_top1": float((simulated.argmax(1) == own.argmax(1)).mean()),
    }
    if targets is not None:
        right = targets.numpy()
        found |= {"accuracy": float((simulated.argmax(1) == right).mean())}
        found |= {"artifact_accuracy": float((own.argmax(1) == right).mean())}
    return {"comparison": found}
