"""Recovery: what learning gives back of what compressing has cost.

    python benchmarks/recovery.py WORK [--only 3bits,2:4,binary,channels] [--tokens 250000,1000000,2000000] [--seeds 3]
                                  [--epochs 3] [--optimizers sgd,...] [--write FILE]

A language model at 3 bits and at 2:4 learns from the text that it was trained on: what its original predicts, with all
that its formats can move, with their scales only, and with products of low rank beside them (LoRA); and the text's own
words (fine-tuning). Its perplexity is taken on a text of its own. ResNet-20 with weights of one bit, and with half of
its channels, learns from 4,000 images and their reflections what its original says, with each training algorithm from
each seed. What WORK holds of an earlier run is not made again. Prints tables, then one JSON line. It needs the shared
models and data: the folder that LISSOM_SHARED names, or `shared` beside the repository.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import images, trained
from table import markdown, span
from torch import Tensor, nn

import lissom
from lissom.calibrate.texts import read_windows
from lissom.engine.lower import lower
from lissom.estimate import Estimate, mean_estimate
from lissom.evaluate import METRICS
from lissom.files import plain, read_json
from lissom.hardware import describe
from lissom.models import Checkpoint
from lissom.recover.folder import learnable
from lissom.recover.optimizers import OPTIMIZERS
from lissom.recover.training import Training
from lissom.types import Recipe

LENGTH, TESTED, BATCH, CALIBRATED = 256, 128, 8, 128  # tokens of a window, windows that test, of a step, that calibrate
BLOCKS = "model.layers.*"
PRUNED = "2:4"
LANGUAGE = {
    "3bits": [{"layers": BLOCKS, "technique": "gptq", "bits": 3, "group": 64}],
    PRUNED: [{"layers": BLOCKS, "technique": "sparsegpt", "keep": 2, "of": 4}],
}
METHODS: dict[str, dict[str, Any]] = {
    "distillation": {"lr": 0.001},
    "distillation, scales only": {"train": "scales"},
    "distillation, LoRA of rank 16": {"train": "lora"},
    "fine-tuning": {"lr": 0.001, "labels": True},
}
IMAGES = {
    "binary": [{"layers": "layer*", "technique": "binary"}],
    "channels": [{"technique": "channels", "sparsity": 0.5}],
}
TRAINED = {"binary": "weights", "channels": "all"}  # with fewer channels matrices are as they were
DRAWS = 2000  # of a bootstrap
Row = dict[str, Any]


def kept(file: Path, make: Callable[[], Row]) -> Row:
    """What a file holds, or else what is made, and kept there."""
    if not file.is_file():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".new").write_text(json.dumps(found), encoding="utf-8")
        file.with_suffix(".new").replace(file)
    return read_json(file)


def language(shared: Path, work: Path, cases: Sequence[str], budgets: Sequence[int]) -> Iterator[Row]:
    """Every method at every number of tokens, of each compressed language model."""
    source, texts = shared / "models" / "wikilm", shared / "data" / "wikitext2"
    tokenizer = Checkpoint(source).tokenizer()
    windows = read_windows([plain_text(texts / "train.txt", work)], tokenizer, LENGTH)
    tests = read_windows([texts / "plain" / "test.txt"], tokenizer, LENGTH, TESTED).long()
    original = lissom.load(source)
    before = scores(original, tests)
    for case in cases:
        folder = work / case.replace(":", "-")
        if not folder.exists():
            lissom.compress_checkpoint(source, Recipe.of(LANGUAGE[case]), windows[:CALIBRATED].long(), folder)
        small = lissom.load(folder)
        lost = scores(small, tests)
        for method, how in METHODS.items():
            if case == PRUNED and how.get("train") == "scales":
                continue  # it has none
            for tokens in budgets:

                def run(small: nn.Module = small, how: dict[str, Any] = how, tokens: int = tokens) -> Row:
                    begun = time.perf_counter()
                    training = Training(tokens=tokens, batch=BATCH, **{k: v for k, v in how.items() if k != "labels"})
                    teacher = None if how.get("labels") else original
                    with learnable(small):
                        found = lissom.recover_model(small, windows, training, original=teacher)
                    after = scores(found.model, tests)
                    seconds = time.perf_counter() - begun
                    return {"after": after.tolist(), "seconds": seconds, **found.curve.as_dict()}

                row = kept(folder.with_name(f"{folder.name} {method} {tokens}.json"), run)
                yield {"case": case, "method": method, "tokens": tokens, **row, **shares(before, lost, row["after"])}


def plain_text(source: Path, work: Path) -> Path:
    """The text as the model was trained on it, without the marks that WikiText puts around signs."""
    work.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8")
    for sign in "-,.":
        text = text.replace(f" @{sign}@ ", sign)
    (work / source.name).write_text(text, encoding="utf-8")
    return work / source.name


@torch.no_grad()
def scores(model: nn.Module, windows: Tensor) -> np.ndarray:
    """The mean log likelihood of each window."""
    return np.asarray(METRICS["perplexity"].scores(model, windows))


def shares(before: np.ndarray, lost: np.ndarray, after: Any) -> Row:
    """Perplexities, and the share of what was lost that is back; its interval by drawing the windows again."""
    each = [np.asarray(part) for part in (before, lost, after)]
    drawn = np.random.default_rng(0).integers(0, len(before), (DRAWS, len(before)))
    many = [np.exp(-part[drawn].mean(1)) for part in each]
    low, high = np.quantile((many[1] - many[2]) / (many[1] - many[0]), (0.025, 0.975))
    was, small, now = (float(np.exp(-part.mean())) for part in each)
    share = Estimate(value=(small - now) / (small - was), low=float(low), high=float(high), n=len(before))
    return {"original": was, "compressed": small, "recovered": now, "share": share}


def pictures(
    shared: Path, work: Path, cases: Sequence[str], names: Sequence[str], seeds: int, epochs: float
) -> Iterator[Row]:
    """Every training algorithm from every seed, of each compressed network."""
    original = trained(shared / "models" / "resnet_cifar10" / "resnet20-12fca82f.th", 3)
    data = images(shared / "data" / "cifar10_lossless" / "cifar10_lossless.npz")
    (x, y), tests = data["train"], data["test"]
    both = (torch.cat([x, x.flip(-1)]), torch.cat([y, y]))
    was = accuracy(original, tests)
    for case in cases:
        small = lissom.compress_model(original, (x[:512],), steps=IMAGES[case])
        lost = accuracy(small, tests)
        for name in names:
            found = []
            for seed in range(seeds):

                def run(case: str = case, small: nn.Module = small, name: str = name, seed: int = seed) -> Row:
                    begun = time.perf_counter()
                    training = Training(train=TRAINED[case], optimizer=name, epochs=epochs, batch=64, seed=seed)
                    learned = lissom.recover_model(small, both, training, original=original)
                    last = learned.curve.looks[-1]
                    right = accuracy(learned.model, tests)
                    seconds = time.perf_counter() - begun
                    return {"right": right, "seconds": seconds, "learned": last.learned, "held": last.held}

                found.append(kept(work / f"{case} {name} {seed} {epochs:g}.json", run))
            right = mean_estimate([row["right"] for row in found])
            gap = mean_estimate([row["held"] - row["learned"] for row in found])
            seconds = sum(row["seconds"] for row in found) / len(found)
            yield {
                "case": case,
                "optimizer": name,
                "original": was,
                "compressed": lost,
                "right": right,
                "gap": gap,
                "seconds": seconds,
            }


def accuracy(model: nn.Module, tests: tuple[Tensor, Tensor]) -> float:
    """The share that is right, as it is served."""
    return float(np.asarray(METRICS["accuracy"].scores(lower(model), tests)).mean())


def tables(words: Sequence[Row], shown: Sequence[Row]) -> str:
    """Both tables, as Markdown."""
    parts = []
    if words:
        head = (
            "model",
            "method",
            "tokens",
            "original",
            "compressed",
            "recovered",
            "share of the loss that is back, %",
            "seconds",
        )
        body = [
            (
                row["case"],
                row["method"],
                f"{row['tokens']:,}",
                *(f"{row[name]:.3f}" for name in ("original", "compressed", "recovered")),
                span(row["share"], ".1f", 100),
                f"{row['seconds']:.0f}",
            )
            for row in words
        ]
        parts.append("\n".join(markdown(head, body)))
    if shown:
        head = (
            "model",
            "algorithm",
            "original, % right",
            "compressed",
            "recovered",
            "loss held out above learned",
            "seconds",
        )
        body = [
            (
                row["case"],
                row["optimizer"],
                *(f"{100 * row[name]:.1f}" for name in ("original", "compressed")),
                span(row["right"], ".1f", 100),
                span(row["gap"], "+.3f"),
                f"{row['seconds']:.0f}",
            )
            for row in sorted(shown, key=lambda row: (row["case"], -row["right"].value))
        ]
        parts.append("\n".join(markdown(head, body)))
    return "\n\n".join(parts)


def main() -> None:
    """Everything that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default=",".join([*LANGUAGE, *IMAGES]))
    parser.add_argument("--tokens", default="250000,1000000,2000000")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    shared = Path(os.environ.get("LISSOM_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
    only = asked.only.split(",")
    budgets = [int(tokens) for tokens in asked.tokens.split(",")]
    texts, cases = ([case for case in table if case in only] for table in (LANGUAGE, IMAGES))
    words = [*language(shared, asked.work, texts, budgets)] if texts else []
    names = asked.optimizers.split(",")
    shown = [*pictures(shared, asked.work, cases, names, asked.seeds, asked.epochs)] if cases else []
    found = tables(words, shown)
    print(found)
    if asked.write:
        asked.write.write_text(f"{PAGE}\n{found}\n", encoding="utf-8")
    rows = [{name: plain(value) for name, value in row.items() if name != "after"} for row in (*words, *shown)]
    print(json.dumps({"machine": plain(describe().as_dict()), "rows": rows}))


PAGE = """# Recovery

What learning gives back of what compressing has cost. `python benchmarks/recovery.py WORK --only
3bits,binary,channels --tokens 250000 --epochs 0.5 --optimizers sgd,momentum,adagrad,adamw,lion,muon --write
docs/recovery.md` makes this page.

Perplexity is taken on 128 windows of 256 tokens of WikiText-2's test text; the share's interval is of those
windows. Of a language model blocks are compressed, at 3 bits by GPTQ in groups of 64. ResNet-20 is right or wrong
on the 1,000 exact test images; its intervals are of the seeds. With weights of one bit all convolutions but the
first have one scale for each output; with half of its channels it runs as floating point.
"""

if __name__ == "__main__":
    main()
