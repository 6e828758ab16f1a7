"""Small networks for an FPGA: whether the simulated hardware says what the artifact says, and what it would take.

    python benchmarks/fpga.py [--epochs 60] [--only mlp,cnn] [--bits 8] [--reuse 1]

An MLP of 64-64-32-10 and a small CNN learn 797 of scikit-learn's digits; each is compressed to 8 and 4 bits, to half of
its weights pruned and 4 bits, and to one bit, and learns on in that form. `lissom export --to fpga` then takes the
ranges from the 797 and compares on the other 1,000: images on which the C++ of hls4ml, compiled with g++, gives bit
for bit what the definition in whole numbers gives; images on which qonnx's own executor does; both accuracies. What it
takes on the chip is estimated by counting (lissom/export/fpga/circuit.py), beside the same network uncompressed, with
weights and inputs of 16 bits. Prints a table, then one JSON line.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sklearn.datasets import load_digits
from table import markdown
from torch import Tensor, nn

from lissom import compress_model
from lissom.artifact import save
from lissom.export.targets import export_folder

TRAINED = 797
FORMS: dict[str, list[dict[str, Any]]] = {
    "int8": [{"technique": "rtn", "bits": 8}],
    "int4": [{"technique": "rtn", "bits": 4}],
    "half pruned, int4": [{"technique": "magnitude", "sparsity": 0.5}, {"technique": "rtn", "bits": 4}],
    "binary": [{"technique": "binary"}],
}
HEAD = ("network", "weights", "bit-exact", "QONNX same", "accuracy", "simulated", "largest difference")
PARTS = ("multipliers", "adders", "lut", "dsp", "weight_bits", "cycles")


def main() -> int:
    """Train, compress, hand over, and tell."""
    asked = arguments()
    rows = [row for name in asked.only.split(",") for row in measured(name, asked)]
    print("\n".join(markdown((*HEAD, *PARTS), [cells(row) for row in rows])))
    print(json.dumps({"benchmark": "fpga", "bits": asked.bits, "reuse": asked.reuse, "rows": rows}))
    return 0


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--only", default="mlp,cnn")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--reuse", type=int, default=1)
    return parser.parse_args()


def network(name: str) -> nn.Module:
    """A network that knows nothing yet."""
    if name == "mlp":
        layers: list[nn.Module] = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)]
        return nn.Sequential(*layers)
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64, 10))


def learn(model: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float) -> nn.Module:
    """Let a model learn, in place."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    for _ in range(epochs):
        for lot in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[lot]), y[lot]).backward()
            optimizer.step()
    return model.eval()


def measured(name: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The network as it was, and a row for each form."""
    torch.manual_seed(0)
    images, classes = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 16).float(), torch.from_numpy(classes)
    x = x if name == "mlp" else x.unflatten(1, (1, 8, 8))
    model = learn(network(name), x[:TRAINED], y[:TRAINED], asked.epochs, 0.005)
    right = float((model(x[TRAINED:]).argmax(1) == y[TRAINED:]).float().mean())
    done = dict[str, Any]()
    for form, steps in FORMS.items():
        small = learn(compress_model(model, x[:TRAINED], steps=steps), x[:TRAINED], y[:TRAINED], asked.epochs, 0.002)
        with TemporaryDirectory() as folder:
            save(small, Path(folder) / "model")
            lots = {"data": (x[TRAINED:], y[TRAINED:]), "calibration": x[:TRAINED]}
            told = {"bits": asked.bits, "reuse": asked.reuse}
            out = export_folder(Path(folder) / "model", "fpga", Path(folder) / "out", **lots, **told)
        assert out.report is not None
        done[form] = out.report
    one = next(iter(done.values()))
    yield {"network": name, "form": "16 bits, uncompressed", "float_accuracy": right, "total": one["uncompressed"]}
    for form, report in done.items():
        yield {"network": name, "form": form, **{part: report[part] for part in ("comparison", "total", "layers")}}


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    there = row.get("comparison")
    took = [f"{row['total'][part]:,}" for part in PARTS]
    if there is None:
        return [row["network"], row["form"], "", "", f"{row['float_accuracy']:.1%}", "", "", *took]
    same = [f"{there[part]} of {there['examples']}" for part in ("bit_exact", "qonnx_same")]
    shares = [f"{there[part]:.1%}" for part in ("artifact_accuracy", "accuracy")]
    return [row["network"], row["form"], *same, *shares, f"{there['largest_difference']:.3f}", *took]


if __name__ == "__main__":
    raise SystemExit(main())
