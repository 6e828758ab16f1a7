"""How fast compressed layers and models run, beside the limits of this machine.

    python benchmarks/speed.py [--seconds 1.0]

Layers: x Wᵀ with a weight of 8192 x 2048, by every form it can run in, taking turns; each form has several copies of
its weight, so that none is read from the cache. Models: the bundled language model, original and compressed, taking
turns.
Prints tables, then one JSON line.
"""

import argparse
import copy
import dataclasses
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
from lissom.engine.kernels import lower
from lissom.estimate import Estimate, median_estimate
from lissom.formats import freeze
from lissom.hardware import describe, interleave, limits, rounds_ms
from lissom.hardware.bench import Answer
from lissom.models.checkpoint import read_tokenizer

OUTPUTS, INPUTS, COPIES = 8192, 2048, 16
ROWS = (1, 4, 16, 64)
DEMO = Path(lissom.__file__).parent / "demo"
STEPS = {
    "int8": [{"technique": "rtn", "bits": 8}],
    "int4 g128": [{"technique": "rtn", "bits": 4, "group": 128}],
    "shared 4-bit": [{"technique": "kmeans", "bits": 4, "rows": 8, "iterations": 1}],
}
console = Console(width=140)


def layers() -> dict[str, tuple[list[nn.Module], float]]:
    """Each form: its copies, and the bytes that one pass must read."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=False))
    size = 4 * OUTPUTS * INPUTS
    forms = {
        "float32": (copies_of(plain), size),
        "bfloat16": (copies_of(copy.deepcopy(plain).bfloat16()), size / 2),
    }
    for name, steps in STEPS.items():
        compressed = freeze(compress_model(plain, steps=steps))
        nbytes = compressed[0].weight.nbytes
        forms[name] = (copies_of(lower(compressed)), nbytes)
    return forms


def copies_of(model: nn.Module) -> list[nn.Module]:
    """More of its one layer than the cache holds."""
    return [copy.deepcopy(model)[0] for _ in range(COPIES)]


def pass_over(copies: list[nn.Module], rows: int) -> Callable[[], None]:
    """A call of the next copy each time."""
    kind = torch.bfloat16 if next(copies[0].parameters(), torch.empty(0)).dtype == torch.bfloat16 else torch.float32
    x = torch.randn(rows, INPUTS).to(kind)
    turn = iter(range(10**9))

    @torch.inference_mode()
    def run() -> None:
        copies[next(turn) % len(copies)](x)

    return run


def by_layer() -> dict[str, dict[str, Estimate]]:
    forms = layers()
    table = Table("weight 8192 x 2048", "MB", *(f"{rows} rows: ms" for rows in ROWS), "1 row: GB/s", box=None)
    found: dict[str, dict[str, Estimate]] = {name: {} for name in forms}
    for rows in ROWS:
        times = interleave({name: pass_over(copies, rows) for name, (copies, _) in forms.items()}, rounds=11)
        for name, time in times.items():
            found[name][str(rows)] = time
    for name, (_, size) in forms.items():
        rate = found[name]["1"].through(lambda ms, size=size: size / ms / 1e6, unit="GB/s")
        shown = [f"{found[name][str(rows)].value:.2f}" for rows in ROWS]
        table.add_row(name, f"{size / 1e6:.1f}", *shown, f"{rate.value:.1f} ({rate.low:.1f} to {rate.high:.1f})")
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
        found = {"limits": rates, **by_layer(), **by_model(Path(name))}
    print(json.dumps({"machine": machine, "figures": found}, default=dataclasses.asdict))


if __name__ == "__main__":
    main()
