"""Verbs that measure: a model's quality, its speed, this machine."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissom.cli.options import Confidence, Drops, Examples, Json, Length, Lot, Model, Planned, Relative, Task, Tokenizer
from lissom.cli.read import example_of, read_budgets, read_lot
from lissom.cli.show import show

if TYPE_CHECKING:
    from lissom.estimate import Estimate


def evaluate(
    model: Model,
    data: Lot = None,
    original: Annotated[str | None, typer.Option(help="the model to compare with, example by example")] = None,
    task: Task = None,
    tokenizer: Tokenizer = None,
    length: Length = 512,
    examples: Examples = 10_000,
    json_lines: Json = False,
) -> None:
    """Measure quality: accuracy, perplexity or a task, and against the original KL divergence, agreement and flips."""
    from lissom.artifact import open_folder
    from lissom.engine.lower import lower
    from lissom.evaluate import compare

    opened = open_folder(model)
    lot, kind = read_lot(data, opened, length, examples, task, tokenizer)
    running = lower(opened.model)
    if original is None:
        figures: dict[str, Estimate | None] = {kind.name: kind.summary(kind.scores(running, lot))}
    else:
        found = compare(lower(open_folder(original).model), running, lot, kind)
        figures = {
            f"{kind.name} of the original": found.original,
            kind.name: found.compressed,
            "drop": found.drop,
            "flips": found.flips,
            "KL divergence": found.kl,
            "same top-1": found.same_top1,
        }
    show(figures, json_lines)


def certify(
    model: Model,
    original: Annotated[str, typer.Option(help="the model that it was made from")],
    data: Lot = None,
    budget: Drops = None,
    relative: Relative = False,
    confidence: Confidence = "95%",
    task: Task = None,
    tokenizer: Tokenizer = None,
    length: Length = 512,
    examples: Examples = 10_000,
    planned: Planned = None,
    json_lines: Json = False,
) -> None:
    """Certify that a model keeps a budget: PASS, FAIL or NEED MORE, on as few examples as it takes; else exit code 1.

    The examples must have had no part in making or choosing the model.
    """
    from lissom.artifact import open_folder
    from lissom.engine.lower import lower
    from lissom.evaluate import certify_models

    opened = open_folder(model)
    lot, kind = read_lot(data, opened, length, examples, task, tokenizer)
    budgets = read_budgets(budget, kind, task, confidence, relative)
    found = certify_models(lower(open_folder(original).model), lower(opened.model), lot, budgets, planned=planned)
    show({"certificate": found}, json_lines)
    if found.verdict != "PASS":
        raise typer.Exit(1)


def bench(
    model: Model,
    prompt: Annotated[int, typer.Option(help="tokens of the prompt", min=1)] = 128,
    new: Annotated[int, typer.Option(help="tokens to generate", min=1)] = 32,
    batch: Annotated[str, typer.Option(help="sequences at once, such as 1,4,16")] = "1",
    json_lines: Json = False,
) -> None:
    """Measure speed: loading, memory, latency or tokens per second beside this machine's limits; medians.

    A language model is loaded as it is served: by a process of its own, whose memory is that after one answer.
    """
    import time

    from lissom.artifact import open_folder
    from lissom.engine.bench import bench_engine
    from lissom.engine.lower import lower
    from lissom.hardware import bench_module, limits, peak_memory
    from lissom.server.trial import trial

    sizes = counts(batch)
    begun = time.perf_counter()
    opened = open_folder(model, bare=True)
    running = lower(opened.model)
    if opened.tokenizer is None:
        taken: dict[str, Any] = {"load_ms": round(1000 * (time.perf_counter() - begun)), "peak_bytes": peak_memory()}
        speed = bench_module(running, example_of(opened.signature, model))
        figures = {"latency_ms": speed.latency_ms, "examples_per_s": speed.examples_per_s}
    else:
        taken, can = trial(model, prompt, new), limits(0.3)
        sized = {"batches": sizes, "prompt": prompt, "new": new}
        served = bench_engine(running, opened.tokenizer, can, cache=opened.cache, **sized)  # type: ignore[arg-type]
        figures = {
            f"{name}, {one.sequences} at once": getattr(one, name)
            for one in served
            for name in one.__dataclass_fields__
            if name != "sequences"
        }
    show(figures, json_lines, taken)


def counts(listed: str) -> list[int]:
    """Whole numbers above 0, given with commas between them.

    Raises:
        DataError: something else.
    """
    from lissom.errors import DataError

    parts = [part.strip() for part in listed.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise DataError(f"--batch {listed!r}: give numbers of sequences with commas between them, such as 1,4,16")
    return [int(part) for part in parts]


def hardware(
    target: Annotated[
        str | None, typer.Option(help="one target, such as cpu, cuda:h200 or tpu:v5e: each form of a layer on it")
    ] = None,
    json_lines: Json = False,
) -> None:
    """Say what this machine is, measure its limits, and list the targets; or of one how fast each form is there.

    What is here is measured; what is not is costed, and said to be so.
    """
    from lissom.cli.targets import every, one

    one(target, json_lines) if target else every(json_lines)
