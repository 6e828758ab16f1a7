"""Three values a weight, trained for as many tokens as the original was: how much of its perplexity comes back.

    python benchmarks/ternary.py [--tokens 13000000] [--windows 4] [--lr 0.004] [--group 0] [--checks 12] [--test 240]

The linear layers of the blocks of wikilm are compressed to `ternary` on the calibration windows of the quality tables;
then all that the format can move is trained by the loop of the technique `distil` on the training text of WikiText-2,
in the form that the original was trained on, pass after pass until so many tokens were seen. A twelfth of the way at a
time the perplexity is taken, in float32, on the first windows of the test text. Prints a table, then one JSON line.

It needs the shared models and data: the folder that LISSOM_SHARED names, or `shared` beside the repository.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from table import markdown
from torch import Tensor, nn

import lissom
from lissom.artifact import open_folder
from lissom.calibrate import token_windows
from lissom.compress.layers import matrices
from lissom.compress.taught import Taught
from lissom.compress.whole import begin
from lissom.evaluate.language import log_likelihood, predict
from lissom.hardware import describe
from lissom.techniques.recover.distil import descend, movable

LENGTH, CALIBRATION = 512, 128
GOAL = 1.10  # times the perplexity of the original
SPELLED = {" @-@ ": "-", " @,@ ": ",", " @.@ ": "."}
LAYERS = "model.layers.*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How the model does after so many tokens: the loss since the check before, the perplexity of the test text."""

    tokens: int
    loss: float | None
    perplexity: float
    seconds: float
    clock: float


def main() -> int:
    """Train, and tell how it goes."""
    asked = arguments()
    shared = Path(os.environ.get("LISSOM_SHARED", Path(__file__).parents[2] / "shared"))
    if not (shared / "data" / "wikitext2" / "train.txt").is_file():
        print("ternary: skipped, there is no data/wikitext2 in the shared folder; LISSOM_SHARED names another one")
        return 0
    original, texts = read(shared)
    test = texts["test"][: asked.test]
    start = perplexity(original, test)
    checks = []
    for check in trained(original, texts, test, asked):
        checks.append(check)
        ratio = check.perplexity / start
        print(
            f"{check.tokens:,} tokens: perplexity {check.perplexity:.3f}, {ratio:.4f} of it",
            file=sys.stderr,
            flush=True,
        )
    print("\n".join(said(checks, start)))
    plain = {"original": start, "goal": GOAL * start, "machine": describe().as_dict(), **vars(asked)}
    print(json.dumps({**plain, "threads": torch.get_num_threads(), "checks": [asdict(check) for check in checks]}))
    return 0


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="Three values a weight, trained for as long as the original.")
    parser.add_argument("--tokens", type=int, default=13_000_000, help="to train on")
    parser.add_argument("--windows", type=int, default=4, help="of a step")
    parser.add_argument("--lr", type=float, default=0.004, help="the first step, in distances of the grid")
    parser.add_argument("--group", type=int, default=0, help="inputs that share a scale; 0: a row")
    parser.add_argument("--checks", type=int, default=12, help="how often the perplexity is taken")
    parser.add_argument("--test", type=int, default=240, help="test windows")
    return parser.parse_args()


def read(shared: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The original, and the windows of the texts."""
    opened, folder = open_folder(shared / "models" / "wikilm"), shared / "data" / "wikitext2"
    texts = {name: (folder / "plain" / f"{name}.txt").read_text(encoding="utf-8") for name in ("calibration", "test")}
    train = (folder / "train.txt").read_text(encoding="utf-8")
    for written, meant in SPELLED.items():
        train = train.replace(written, meant)
    texts["train"] = train
    return opened.model, {name: token_windows(text, opened.tokenizer, LENGTH) for name, text in texts.items()}


def trained(original: nn.Module, texts: dict[str, Tensor], test: Tensor, asked: argparse.Namespace) -> Iterator[Check]:
    """A check before, while, and after the model is trained."""
    processor, clock = time.process_time(), time.perf_counter()
    model, lots, order = ready(original, texts, asked)
    each, losses = max(len(order) // asked.checks, 1), []

    def check(step: int) -> Check:
        seconds, passed = time.process_time() - processor, time.perf_counter() - clock
        loss = sum(losses) / len(losses) if losses else None
        tokens = step * asked.windows * LENGTH
        found = perplexity(model, test)
        return Check(tokens=tokens, loss=loss, perplexity=found, seconds=seconds, clock=passed)

    yield check(0)
    steps = descend(movable(model), lots, order, lr=asked.lr, clip=1.0, bf16=True, loss="kl")
    for step, loss in enumerate(steps, 1):
        losses.append(loss)
        if step % each == 0 or step == len(order):
            yield check(step)
            losses.clear()


def ready(
    original: nn.Module, texts: dict[str, Tensor], asked: argparse.Namespace
) -> tuple[nn.Module, Taught, list[int]]:
    """The compressed model, its latent weights near the original ones; the lots; and the order in which they come."""
    calibration = list(texts["calibration"][:CALIBRATION].split(8))
    step: dict[str, Any] = {"layers": LAYERS, "technique": "ternary", "group": asked.group}
    model = lissom.compress_model(original, calibration, steps=[step])
    begin(model, matrices(original))
    batches = [batch for batch in texts["train"].split(asked.windows) if len(batch) == asked.windows]
    lots = Taught(model=model, original=original, data=batches, room=0)
    generator, count = torch.Generator().manual_seed(0), asked.tokens // (asked.windows * LENGTH)
    passes = [torch.randperm(len(batches), generator=generator) for _ in range(math.ceil(count / len(batches)))]
    return model, lots, torch.cat(passes)[:count].tolist()


@torch.no_grad()
def perplexity(model: nn.Module, windows: Tensor) -> float:
    """Of all windows, each scored from its second token."""
    found = torch.cat([log_likelihood(predict(model, batch), batch) for batch in windows.split(4)])
    return math.exp(-float(found.mean()))


def said(checks: list[Check], start: float) -> list[str]:
    """The table."""
    head = ("tokens", "KL of the training text, nats", "perplexity", "of the original's", "processor seconds", "clock")
    body = [
        (
            f"{check.tokens:,}",
            "" if check.loss is None else f"{check.loss:.4f}",
            f"{check.perplexity:.3f}",
            f"{check.perplexity / start:.4f}",
            f"{check.seconds:.0f}",
            f"{check.clock:.0f}",
        )
        for check in checks
    ]
    return [f"The original: {start:.3f}; the goal: {GOAL * start:.3f}.", "", *markdown(head, body)]


if __name__ == "__main__":
    sys.exit(main())
