"""How fast compressed layers and models run, beside the limits of this machine.

    python benchmarks/speed.py [--seconds 1.0]

Layers: x Wᵀ with a weight of 8192 x 2048, by every form it can run in and by PyTorch's own operators, taking turns;
each form has several copies of its weight, so that none is read from the cache. GB/s are those of one row, GOP/s
those of the most rows, each beside the limit of this machine. Models: the bundled one, original and compressed.
Prints tables, then one JSON line.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lissom
from lissom.artifact import open_folder
from lissom.calibrate import token_windows
from lissom.compress import compress_model
from lissom.engine.lower import lower
from lissom.estimate import Estimate, median_estimate
from lissom.formats import freeze
from lissom.hardware import describe, interleave, limits, rounds_ms
from lissom.hardware.bench import Answer
from lissom.models.checkpoint import read_tokenizer

OUTPUTS, INPUTS, COPIES = 8192, 2048, 16
ROWS = (1, 4, 8, 16, 32, 512)
DEMO = Path(lissom.__file__).parent / "demo"
STEPS = {
    "int8": [{"technique": "rtn", "bits": 8}],
    "int4 g128": [{"technique": "rtn", "bits": 4, "group": 128}],
    "shared 4-bit": [{"technique": "kmeans", "bits": 4, "rows": 8, "iterations": 1}],
}
FORMS = {
    **STEPS,
    "int4 g32": [{"technique": "rtn", "bits": 4, "group": 32}],
    "int4 g128, zeros": [{"technique": "rtn", "bits": 4, "group": 128, "symmetric": False}],
    "int3 g128": [{"technique": "rtn", "bits": 3, "group": 128}],
    "int2 g128": [{"technique": "rtn", "bits": 2, "group": 128}],
    "shared 4-bit, a book a row": [{"technique": "kmeans", "bits": 4, "rows": 1, "iterations": 1}],
    "ternary g128": [{"technique": "ternary", "group": 128, "rounds": 0}],
    "binary g128": [{"technique": "binary", "group": 128, "rounds": 0}],
}
console = Console(width=160)


class TorchInt8(nn.Module):
    """PyTorch's operator for int8 weights and bfloat16 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(-127, 128, (OUTPUTS, INPUTS), dtype=torch.int8))
        self.register_buffer("scale", torch.ones(OUTPUTS, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x, self.codes, self.scale)  # type: ignore[no-any-return]


class TorchInt4(nn.Module):
    """PyTorch's operator for int4 weights in groups of 128 and bfloat16 inputs."""

    def __init__(self) -> None:
        super().__init__()
        codes = torch.randint(16, (OUTPUTS, INPUTS), dtype=torch.int32)
        self.register_buffer("codes", torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))
        self.register_buffer("scale", torch.ones(INPUTS // 128, OUTPUTS, 2, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.codes, 128, self.scale)  # type: ignore[no-any-return]


def every_form() -> dict[str, list[nn.Module]]:
    """Each form: its copies, more than the cache holds. What is PyTorch's own comes first."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=False)).requires_grad_(False)
    forms = {
        "torch: float32": copies_of(plain[0]),
        "torch: bfloat16": copies_of(copy.deepcopy(plain[0]).bfloat16()),
        "torch: int8": copies_of(TorchInt8()),
        "torch: int4 g128": copies_of(TorchInt4()),
    }
    for name, steps in FORMS.items():
        compressed = freeze(compress_model(plain, steps=steps))
        forms[name] = copies_of(lower(compressed)[0])
    return forms


def copies_of(layer: nn.Module) -> list[nn.Module]:
    """More of one layer than the cache holds."""
    return [copy.deepcopy(layer) for _ in range(max(COPIES, 160_000_000 // nbytes(layer)))]


def nbytes(layer: nn.Module) -> int:
    """What one pass must read."""
    return sum(part.nbytes for part in layer.state_dict().values())


def pass_over(name: str, copies: list[nn.Module], rows: int, layers: int) -> Callable[[], None]:
    """Calls of the next so many copies each time, one after the other as in a model."""
    narrow = name.startswith("torch: ") and name != "torch: float32"
    x = torch.randn(rows, INPUTS, dtype=torch.bfloat16 if narrow else torch.float32)
    turn = itertools.cycle(copies)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(layers):
            next(turn)(x)

    return run


def by_layer(rates: dict[str, Estimate]) -> dict[str, dict[str, Estimate]]:
    forms = every_form()
    table = Table("weight 8192 x 2048", "MB", *(f"{rows} rows: ms" for rows in ROWS), "GB/s", "GOP/s", box=None)
    found: dict[str, dict[str, Estimate]] = {name: {} for name in forms}
    for rows in ROWS:
        layers = 16 if rows <= 32 else 1
        passes = {name: pass_over(name, copies, rows, layers) for name, copies in forms.items()}
        for name, time in interleave(passes, rounds=9).items():
            found[name][str(rows)] = time.through(lambda ms, layers=layers: ms / layers, unit="ms")
    for name, copies in forms.items():
        size, work = nbytes(copies[0]), 2 * ROWS[-1] * OUTPUTS * INPUTS
        read = found[name]["1"].through(lambda ms, size=size: size / ms / 1e6, unit="GB/s")
        done = found[name][str(ROWS[-1])].through(lambda ms, work=work: work / ms / 1e6, unit="GOP/s")
        shown = [f"{found[name][str(rows)].value:.3f}" for rows in ROWS]
        parts = (f"{read.value:.1f} ({read.value / rates['read_all'].value:.0%})",)
        parts += (f"{done.value:.0f} ({done.value / rates['int8'].value:.0%})",)
        table.add_row(name, f"{size / 1e6:.2f}", *shown, *parts)
    console.print(table)
    return found


def by_model(folder: Path) -> dict[str, dict[str, Estimate]]:
    tokens = token_windows((DEMO / "stories.txt").read_text(encoding="utf-8"), read_tokenizer(DEMO), 128)[:64]
    answers = {"original": answer(open_folder(DEMO).model, tokens)}
    for name, steps in STEPS.items():
        recipe = lissom.Recipe.of([{"layers": "model.layers.*", **step} for step in steps])
        out = lissom.compress_checkpoint(DEMO, recipe, tokens, folder / name.replace(" ", "-"))
        answers[name] = answer(lower(open_folder(out).model), tokens)
    with torch.inference_mode():
        parts = {f"{name} {part}": getattr(a, part) for name, a in answers.items() for part in ("read", "write")}
        times = {name: median_estimate(spent, unit="ms") for name, spent in rounds_ms(parts, rounds=9).items()}
    table = Table("bundled model", "128 tokens read: ms", "16 written: ms", "times the original's", box=None)
    for name in answers:
        read, write = times[f"{name} read"], times[f"{name} write"]
        ratios = (read.value / times["original read"].value, write.value / times["original write"].value)
        table.add_row(name, f"{read.value:.1f}", f"{write.value:.1f}", f"{ratios[0]:.2f} / {ratios[1]:.2f}")
    console.print(table)
    return {name: {part: times[f"{name} {part}"] for part in ("read", "write")} for name in answers}


def answer(model: nn.Module, tokens: Tensor) -> Answer:
    return Answer(model, tokens[:1], 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="to measure each limit")
    seconds = parser.parse_args().seconds
    machine, rates = describe().as_dict(), limits(seconds).as_dict()
    console.print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n", highlight=False)
    console.print(*(f"{name}: {rate}" for name, rate in rates.items()), sep="\n", highlight=False)
    with tempfile.TemporaryDirectory() as name:
        found = {"limits": rates, **by_layer(rates), **by_model(Path(name))}
    print(json.dumps({"machine": machine, "figures": found}, default=dataclasses.asdict))


if __name__ == "__main__":
    main()
