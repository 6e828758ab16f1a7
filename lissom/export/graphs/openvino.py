"""OpenVINO: any module as its own representation, a file of what is computed (.xml) and one of constants (.bin).

OpenVINO reads the file of ONNX. Constants stay whole numbers of 2, 4 or 8 bits; how it computes with them, and whether
it rounds inputs too, is a matter of its settings.

OpenVINO 2026.4 multiplies wrongly, by half of the result and more, with DequantizeLinear of most groups that are no
power of two, compiles no GatherBlockQuantized that has zeros, and reads no MatMulNBits of what is looked up as well. So
products are MatMulNBits or nothing, and what is looked up is DequantizeLinear in groups that are a power of two.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from lissom.artifact.manifest import building
from lissom.errors import ModelError, reason
from lissom.export.graphs.layers import OPENVINO
from lissom.export.graphs.onnx import keep, program
from lissom.export.handover import Given
from lissom.formats import Weight

NAME = "openvino_model.xml"  # as optimum names it


def write(given: Given, taken: Mapping[str, Weight], out: Path) -> None:
    """A folder of the two files.

    Raises:
        ModelError: a package is missing, torch cannot follow the module, or OpenVINO does not read it.
    """
    try:
        import openvino
    except ImportError:
        raise ModelError(
            "openvino: needs the package openvino; install it with `pip install lissom[openvino]`"
        ) from None
    with tempfile.TemporaryDirectory() as place, building(out) as folder:
        file = Path(place) / "model.onnx"
        keep(program(given, taken, "openvino", OPENVINO).model, file)
        try:
            model = openvino.Core().read_model(file)  # convert_model makes floating point of all that is constant
        except RuntimeError as error:
            raise ModelError(f"{given.folder}: OpenVINO does not read it ({reason(error)})") from None
        openvino.save_model(model, folder / NAME, compress_to_fp16=False)
