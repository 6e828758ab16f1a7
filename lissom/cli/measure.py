"""Verbs that measure: a model's quality, its speed, this machine."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissom.cli.options import Data, Json, Length, Model
from lissom.cli.read import example_of, read_lot
from lissom.cli.show import show

if TYPE_CHECKING:
    from lissom.estimate import Estimate


def evaluate(
    model: Model,
    data: Data,
    original: Annotated[str | None, typer.Option(help="the model to compare with, example by example")] = None,
    length: Length = 512,
    examples: Annotated[int, typer.Option(help="examples (windows of a text) to use, at most", min=1)] = 10_000,
    json_lines: Json = False,
) -> None:
    """Measure quality: accuracy or perplexity, and against the original KL divergence, agreement and flips."""
    from lissom.artifact import open_folder
    from lissom.engine.kernels import lower
    from lissom.evaluate import compare, metric

    opened = open_folder(model)
    by = "perplexity" if opened.tokenizer else "accuracy"
    lot = read_lot(data, opened, length, examples)
    running = lower(opened.model)
    if original is None:
        kind = metric(by)
        figures: dict[str, Estimate | None] = {by: kind.summary(kind.scores(running, lot))}
    else:
        found = compare(lower(open_folder(original).model), running, lot, by)
        figures = {
            f"{by} of the original": found.original,
            by: found.compressed,
            "drop": found.drop,
            "flips": found.flips,
            "KL divergence": found.kl,
            "same top-1": found.same_top1,
        }
    show(figures, json_lines)


def bench(
    model: Model,
    prompt: Annotated[int, typer.Option(help="tokens of the prompt", min=1)] = 128,
    new: Annotated[int, typer.Option(help="tokens to generate", min=2)] = 32,
    json_lines: Json = False,
) -> None:
    """Measure speed: latency, tokens per second, memory; medians with their intervals."""
    import torch

    from lissom.artifact import open_folder
    from lissom.engine.kernels import lower
    from lissom.hardware import bench_language_model, bench_module

    opened = open_folder(model)
    running = lower(opened.model)
    if opened.tokenizer is not None:
        tokens = torch.randint(len(opened.tokenizer), (1, prompt))
        speed: Any = bench_language_model(running, tokens, new_tokens=new)
    else:
        speed = bench_module(running, example_of(opened.signature, model))
    figures = {name: getattr(speed, name) for name in speed.__dataclass_fields__ if name != "peak_bytes"}
    show(figures, json_lines, {"peak_bytes": speed.peak_bytes})


def hardware(json_lines: Json = False) -> None:
    """Say what this machine is, and measure its limits."""
    from lissom.hardware import describe, limits

    show(limits().as_dict(), json_lines, describe().as_dict())
