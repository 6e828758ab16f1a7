"""What each of two workers runs: models learn in a layout each; prints the losses of all cases, as JSON.

torchrun ... laying.py FOLDER, where FOLDER has a checkpoint of each family
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

import lissom
from lissom.models.families import FAMILIES
from lissom.recover.model import recover_model
from lissom.recover.parallel.layout import read_layout
from lissom.recover.parallel.workers import workers
from lissom.recover.training import Training

RTN = {"technique": "rtn", "bits": 3, "group": 8}
BOOKS = {"technique": "kmeans", "bits": 3, "rows": 4}
PATTERN = {"technique": "magnitude", "keep": 2, "of": 4}
WIDE = {"technique": "rtn", "bits": 2, "group": 0}


RATES = {"phi3": 0.002, "qwen3_moe": 0.002}


class Case(NamedTuple):
    """A model, how it was compressed, a layout, and what is said of learning."""

    model: str
    step: dict[str, Any]
    layout: str
    said: dict[str, Any]


CASES = {
    **{f"tensor {name}": Case(name, RTN, "tensor=2", {"lr": RATES.get(name, 0.01)}) for name in FAMILIES},
    "tensor codebooks": Case("llama", BOOKS, "tensor=2", {"optimizer": "sgd", "lr": 0.3, "clip": 0.1}),
    "tensor 2:4": Case("llama", PATTERN, "tensor=2", {}),
    "tensor one scale": Case("qwen3", WIDE, "tensor=2", {"train": "scales", "lr": 0.002}),
    "tensor lora": Case("qwen2", RTN, "tensor=2", {"train": "lora", "rank": 2, "lr": 0.02}),
    "tensor all": Case("phi3", {**RTN, "layers": "*o_proj"}, "tensor=2", {"train": "all", "ema": 0.5}),
    "tensor narrow": Case("qwen3", RTN, "tensor=2", {"bf16": True, "lr": 0.002}),
    "pipeline narrow": Case("llama", RTN, "pipeline=2", {"bf16": True, "lr": 0.002}),
    "data local": Case("llama", RTN, "data=2", {"local": 2, "gradients": "int4", "lr": 0.01}),
    "pipeline tied": Case("llama", RTN, "pipeline=2", {}),
    "pipeline gemma": Case("gemma2", RTN, "pipeline=2", {"stages": "gpipe", "checkpointing": True, "lr": 0.01}),
    "pipeline module": Case("module", WIDE, "pipeline=2", {"norms": False, "clip": 0.01}),
    "pipeline zbv": Case("module", WIDE, "pipeline=2", {"norms": False, "stages": "zbv", "accumulate": 4}),
    "pipeline zerobubble": Case("module", WIDE, "pipeline=2", {"norms": False, "stages": "zerobubble"}),
    "pipeline interleaved": Case("module", WIDE, "pipeline=2", {"norms": False, "stages": "interleaved"}),
    "pipeline labels": Case("module", WIDE, "pipeline=2", {"optimizer": "momentum", "lr": 0.005, "norms": False}),
}


class Residual(nn.Module):
    """A few layers with ways past them."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.end = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.begin(x))
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.end(x.mean((2, 3)))


def learned(case: Case, folder: Path, layout: str) -> list[float]:
    """The losses on what was held out, of a model that learns as the case says."""
    torch.manual_seed(5)
    said = {name: own for name, own in case.said.items() if layout or name != "stages"}
    training = Training(**{"steps": 4, "looks": 2, "batch": 8, "bf16": False, **said})
    if case.model == "module":
        original, data = Residual().eval(), torch.randn(40, 1, 5, 5)
        with torch.no_grad():
            labels = original(data).argmax(1)
    else:
        original = transformers.AutoModelForCausalLM.from_pretrained(folder / case.model).float().eval()
        data = torch.randint(0, 2048, (40, 8))
    small = lissom.compress_model(original, steps=[case.step])
    if training.optimizer == "momentum":
        found = recover_model(small, (data, labels), training, layout=read_layout(layout))
    else:
        found = recover_model(small, data, training, original=original, layout=read_layout(layout))
    with torch.no_grad():
        output = found.model(data[:4])
    last = getattr(output, "logits", output)
    return [look.held for look in found.curve.looks] + [float(last.float().square().mean())]


def main(folder: str, *names: str) -> None:
    """All cases, or some, by workers that stay."""
    with workers() as team:
        found = {name: learned(CASES[name], Path(folder), CASES[name].layout) for name in names or CASES}
        if team.first:
            print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
