"""onnxruntime and OpenVINO on exported modules, in 8 bits, run by an interpreter that has them.

    python peer_modules.py FOLDER DESCRIPTOR

FOLDER has, for each module and batch size, `NAME-BATCH.pt2`, and `NAME.npz` with arrays of calibration inputs. What is
asked comes as lines of JSON: [peer, module, batch], to be timed for a turn, or with the path of a file of inputs behind
it, to write the outputs beside them. Answers go to the descriptor, as lines. Of the encoder and the LSTM onnxruntime
quantizes the weights and, as they come, the inputs of matrix products (quantize_dynamic); convolutions statically, by
calibration. OpenVINO quantizes by NNCF's post-training quantization, with its own settings for each kind of module.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nncf
import numpy as np
import onnxruntime
import openvino
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from turns import Arrays, answer_all, batches, turn

THREADS = torch.get_num_threads()
TRANSFORMERS = ("encoder", "padded")
DYNAMIC = (*TRANSFORMERS, "recurrent")

Run = Callable[[Arrays], np.ndarray]


class Reader(CalibrationDataReader):
    """Calibration inputs by their names."""

    def __init__(self, names: list[str], lots: Iterator[Arrays]) -> None:
        self.names, self.lots = names, lots

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next ones, or None at the end."""
        lot = next(self.lots, None)
        return None if lot is None else dict(zip(self.names, lot, strict=True))


def with_onnxruntime(folder: Path, name: str, size: int) -> Run:
    """A module quantized for onnxruntime and opened there."""
    plain, ready, small = (folder / f"{name}-{size}{kind}.onnx" for kind in ("", "-ready", "-int8"))
    program = torch.export.load(folder / f"{name}-{size}.pt2")
    torch.onnx.export(program, (), plain, dynamo=True, verbose=False, external_data=False)
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    names = [given.name for given in onnxruntime.InferenceSession(ready).get_inputs()]
    if name in DYNAMIC:
        quantize_dynamic(ready, small, weight_type=QuantType.QInt8)
    else:
        quantize_static(ready, small, Reader(names, batches(folder / f"{name}.npz", size)), per_channel=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(small, options)
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def with_openvino(folder: Path, name: str, size: int) -> Run:
    """A module quantized by NNCF and compiled by OpenVINO."""
    model = openvino.convert_model(torch.export.load(folder / f"{name}-{size}.pt2"))
    kind = nncf.ModelType.TRANSFORMER if name in TRANSFORMERS else None
    lots = list(batches(folder / f"{name}.npz", size))
    small = nncf.quantize(model, nncf.Dataset(lots), model_type=kind)
    compiled = openvino.compile_model(small, "CPU", {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    return lambda arrays: request.infer(arrays)[0]


PEERS = {"onnxruntime": with_onnxruntime, "OpenVINO": with_openvino}


def main() -> None:
    """Make every model, then answer until there is no more question."""
    folder = Path(sys.argv[1])
    made: dict[tuple[str, str, int], Run] = {}
    for file in sorted(folder.glob("*.pt2")):
        name, _, size = file.stem.rpartition("-")
        for peer, make in PEERS.items():
            made[peer, name, int(size)] = make(folder, name, int(size))

    def answer(peer: str, name: str, size: int, file: str | None = None) -> float | None:
        run = made[peer, name, size]
        if file is None:
            lot = next(batches(folder / f"{name}.npz", size))
            return turn(lambda: run(lot))
        found = np.concatenate([run(lot) for lot in batches(Path(file), size)])
        np.save(Path(file).with_suffix(".npy"), found)
        return None

    answer_all(sys.argv[2], {tool.__name__: tool.__version__ for tool in (onnxruntime, openvino, nncf)}, answer)


if __name__ == "__main__":
    main()
