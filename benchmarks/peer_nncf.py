"""NNCF's quantization with accuracy control, run in OpenVINO by an interpreter that has both.

    python peer_nncf.py FOLDER KIND BATCH DESCRIPTOR

FOLDER has `model.pt2`, a module exported for batches of BATCH examples, and `calibration.npz`, `selection.npz`,
`certification.npz` and `timed.npz` with its inputs and, last, what is right. KIND says what is graded: "classes", by
accuracy, or "pairs", by Spearman's correlation. What is asked comes as lines of JSON: ["make", drop] makes a model that
drops at most so much on the examples for selection, and answers its bytes and the seconds; ["outputs"] writes
`outputs.npy`, the outputs for the examples that certify; ["turn"] answers the milliseconds of the batch that is timed.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from scipy.stats import spearmanr
from turns import Arrays, answer_all, batches, turn

THREADS = torch.get_num_threads()
OPTIONS = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}

Grade = Callable[[np.ndarray, np.ndarray], float]
GRADES: dict[str, Grade] = {
    "classes": lambda said, right: float((said.argmax(1) == right).mean()),
    "pairs": lambda said, right: float(spearmanr(said, right).statistic),
}


class Control:
    """The original, what was made of it last, and the examples."""

    def __init__(self, folder: Path, kind: str, size: int) -> None:
        self.folder, self.kind, self.size = folder, kind, size
        self.original = openvino.convert_model(torch.export.load(folder / "model.pt2"))
        self.request: Any = None

    def lots(self, name: str) -> list[Arrays]:
        """The batches of some of the examples."""
        return list(batches(self.folder / f"{name}.npz", self.size))

    def quality(self, model: Any, lots: Iterable[Arrays]) -> float:
        """The grade of a compiled model."""
        request = model.create_infer_request()
        pairs = [(request.infer(inputs)[0].copy(), right) for *inputs, right in lots]
        said, right = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return GRADES[self.kind](said, right)

    def make(self, drop: float) -> dict[str, Any]:
        """A model within a drop, on the examples for selection."""
        begun = time.perf_counter()
        model = nncf.quantize_with_accuracy_control(
            self.original,
            nncf.Dataset(self.lots("calibration"), lambda lot: lot[:-1]),
            nncf.Dataset(self.lots("selection"), lambda lot: lot[:-1]),
            self.quality,
            max_drop=drop,
            model_type=nncf.ModelType.TRANSFORMER if self.kind == "pairs" else None,
        )
        seconds = time.perf_counter() - begun
        file = self.folder / "model.xml"
        openvino.save_model(model, file)
        self.request = openvino.compile_model(file, "CPU", OPTIONS).create_infer_request()
        return {"recipe": "int8 where it may", "bytes": file.with_suffix(".bin").stat().st_size, "seconds": seconds}

    def outputs(self) -> None:
        """Write what the model says to the examples that certify."""
        found = [self.request.infer(inputs)[0].copy() for *inputs, _ in self.lots("certification")]
        np.save(self.folder / "outputs.npy", np.concatenate(found))

    def turn(self) -> float:
        """The time of a batch."""
        inputs = self.lots("timed")[0][:-1]
        return turn(lambda: self.request.infer(inputs))


def main(folder: str, kind: str, size: str, pipe: str) -> None:
    """Answer."""
    control = Control(Path(folder), kind, int(size))
    versions = {tool.__name__: tool.__version__ for tool in (nncf, openvino)}
    answer_all(pipe, versions, lambda what, *words: getattr(control, what)(*words))


if __name__ == "__main__":
    main(*sys.argv[1:])
