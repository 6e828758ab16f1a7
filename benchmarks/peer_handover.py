"""What lissom handed over, run by the runtime that it was made for, in an interpreter that has that.

    python peer_handover.py FOLDER DESCRIPTOR

Asked [runtime, file, arrays] it opens the file, runs it on the arrays of an .npz file, writes the outputs to the .npy
file beside that, and answers with the milliseconds of a call and the runtime's version. Asked again it has it open.
"""

import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from turns import answer_all, turn

BATCH = 16  # examples at once
Run = Callable[[list[np.ndarray]], np.ndarray]


def transformers(file: str) -> Run:
    """A folder of compressed-tensors."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(file, dtype=torch.float32)

    @torch.inference_mode()
    def run(arrays: list[np.ndarray]) -> np.ndarray:
        logits: np.ndarray = model(torch.from_numpy(arrays[0])).logits.float().numpy()
        return logits

    return run


def onnxruntime(file: str) -> Run:
    """An ONNX file."""
    import onnxruntime as runtime

    session = runtime.InferenceSession(file)
    names = [given.name for given in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def openvino(file: str) -> Run:
    """A folder with an .xml file and the weights beside it."""
    import openvino as runtime

    graph = Path(file) / "openvino_model.xml"
    request = runtime.compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    return lambda arrays: request.infer(arrays)[0]


def torch(file: str) -> Run:
    """An archive of torch.export."""
    import torch as runtime

    model = runtime.export.load(file).module()

    @runtime.inference_mode()
    def run(arrays: list[np.ndarray]) -> np.ndarray:
        found: Any = model(*map(runtime.from_numpy, arrays))
        found = found if isinstance(found, runtime.Tensor) else found[0]  # the archive gives its outputs in order
        return found.numpy()

    return run


def executorch(file: str) -> Run:
    """A program of ExecuTorch."""
    import torch as numbers
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(Path(file)).load_method("forward")

    def run(arrays: list[np.ndarray]) -> np.ndarray:
        found: np.ndarray = method.execute([numbers.from_numpy(array) for array in arrays])[0].numpy()
        return found

    return run


RUNTIMES = {
    "transformers": transformers,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torch": torch,
    "executorch": executorch,
}


@cache
def opened(runtime: str, file: str) -> Run:
    """What runs a file."""
    return RUNTIMES[runtime](file)


def answer(runtime: str, file: str, arrays: str) -> dict[str, Any]:
    """The outputs, written, and the time of a call of one batch."""
    run = opened(runtime, file)
    with np.load(arrays) as held:
        given = [held[name] for name in held.files]
    lots = [[part[at : at + BATCH] for part in given] for at in range(0, len(given[0]), BATCH)]
    try:
        said = np.concatenate([run(lot) for lot in lots])
    except RuntimeError as error:
        return {"failed": str(error).strip().splitlines()[-1][:120], "version": version(runtime)}
    np.save(Path(arrays).with_suffix(".npy"), said)
    return {"ms": turn(lambda: run(lots[0])), "version": version(runtime)}


if __name__ == "__main__":
    answer_all(sys.argv[2], {}, answer)
