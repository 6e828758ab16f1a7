"""Torch-Pruning, run by an interpreter that has it: the inner channels of a ResNet for CIFAR-10, halved.

    python peer_torchpruning.py WEIGHTS BLOCKS IMAGES ARCHIVE OUT [--importance magnitude|taylor] [--epochs 10]

IMAGES are the lossless ones, ARCHIVE the lossy ones to train on. OUT gets `facts.json`: for each test image whether it
was classified rightly, before and after recovery; the multiplications left; the seconds; and versions.
The stream between the blocks keeps its channels: its shortcuts pad to fixed widths. So what each block has inside is
pruned, globally ranked layer by layer as the tool does it by default.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_pruning
from cifar import ResNet, images, multiplications, recover, trained
from torch import nn

CALIBRATION = 512


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Prune with Torch-Pruning.")
    parser.add_argument("weights", type=Path)
    parser.add_argument("blocks", type=int)
    parser.add_argument("images", type=Path)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--importance", choices=("magnitude", "taylor"), default="magnitude")
    parser.add_argument("--epochs", type=int, default=10)
    return parser.parse_args()


def prune(model: ResNet, importance: str, x: torch.Tensor, y: torch.Tensor) -> None:
    """Halve the channels between the two convolutions of every block, in place."""
    kept = [layer for name, layer in model.named_modules() if not name.startswith("layer") or name.endswith("conv2")]
    kinds = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    pruner = torch_pruning.pruner.BasePruner(
        model,
        x[:1],
        importance=kinds[importance](),
        pruning_ratio=0.5,
        ignored_layers=[layer for layer in kept if isinstance(layer, nn.Conv2d | nn.Linear)],
    )
    if importance == "taylor":
        F.cross_entropy(model(x), y).backward()
    pruner.step()
    model.zero_grad()


@torch.no_grad()
def right(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    """Which images are classified rightly."""
    said = torch.cat([model.eval()(lot).argmax(-1) for lot in x.split(250)])
    return (said == y).float().tolist()


def main() -> None:
    """Prune, train, and write down what came of it."""
    asked = arguments()
    held, model = images(asked.images), trained(asked.weights, asked.blocks)
    x, y = held["train"]
    whole, start = multiplications(model), time.process_time()
    prune(model, asked.importance, x[:CALIBRATION], y[:CALIBRATION])
    facts = {
        "seconds": time.process_time() - start,
        "multiplications": [whole, multiplications(model)],
        "weights": sum(p.numel() for p in model.parameters()),
        "before": right(model, *held["test"]),
    }
    start = time.process_time()
    recover(model, asked.archive, x, epochs=asked.epochs)
    facts |= {"after": right(model, *held["test"]), "recovery_seconds": time.process_time() - start}
    facts["versions"] = {"torch-pruning": torch_pruning.__version__}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
