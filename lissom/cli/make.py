"""Verbs that make a smaller model."""

from pathlib import Path
from typing import Annotated

import typer

from lissom.cli.options import Data, Length, Model, Out
from lissom.cli.read import fraction, read_recipe, read_subject, size, text_windows
from lissom.cli.show import console, report_of, working


def compress(
    model: Model,
    recipe: Annotated[Path, typer.Option(help="recipe.yaml")],
    out: Out,
    data: Annotated[
        Path | None, typer.Option(help="a text to calibrate on; without it every input counts alike")
    ] = None,
    windows: Annotated[int, typer.Option(help="windows to calibrate on, at most", min=1)] = 128,
    length: Length = 512,
    max_ram: Annotated[str | None, typer.Option(help="memory that may be taken, such as 4GB; by default any")] = None,
    entropy_coding: Annotated[
        str | None, typer.Option(help="deflate: code the tensors on disk, decode them when loading; by default neither")
    ] = None,
) -> None:
    """Compress a language model by a recipe, part by part."""
    import torch

    from lissom.artifact import compress_checkpoint
    from lissom.models import Checkpoint

    steps, bound = read_recipe(recipe), None if max_ram is None else size("max-ram", max_ram)
    checkpoint = Checkpoint(model)
    tokens = torch.empty(0, length, dtype=torch.long)
    if data is not None:
        tokens = text_windows(data, checkpoint.tokenizer(), length)[:windows]
    with working() as tell:
        compress_checkpoint(
            checkpoint.folder, steps, tokens, out, max_ram=bound, entropy_coding=entropy_coding, progress=tell
        )
    before, after = (sum(file.stat().st_size for file in f.glob("*.safetensors")) for f in (checkpoint.folder, out))
    console.print(f"{out}: {after:,} bytes of weights, {before / after:.2f} x smaller than {checkpoint.folder}")


def optimize(
    model: Model,
    data: Data,
    out: Out,
    max_drop: Annotated[
        str, typer.Option(help="accepted drop: points of accuracy, or of perplexity in percent")
    ] = "1%",
    confidence: Annotated[str, typer.Option(help="how sure the certificate is")] = "95%",
    target: Annotated[str, typer.Option(help="the hardware to measure on")] = "cpu",
    prefer: Annotated[str, typer.Option(help="what cheap means: size, latency, or both")] = "both",
    length: Length = 512,
    windows: Annotated[int, typer.Option(help="windows of a text to use, at most", min=1)] = 1000,
    report: Annotated[
        Path | None, typer.Option(help="where to write the HTML report; by default OUT/report.html")
    ] = None,
) -> None:
    """Find the smallest model that is certified to stay inside the budget, and write it."""
    from lissom.artifact import add_file
    from lissom.artifact.manifest import check_free
    from lissom.report import frontier_table, write_report
    from lissom.search import optimize
    from lissom.types import Budget

    budget = Budget(max_drop=fraction("max-drop", max_drop), confidence=fraction("confidence", confidence))
    subject, examples = read_subject(model, data, length, windows)
    check_free(out)
    with working() as tell:
        result = optimize(subject, examples, budget, target=target, prefer=prefer, progress=tell)
    console.print(frontier_table(result.points, result.best.point.name if result.best else None, metric=result.metric))
    for name, reason in result.failed.items():
        console.print(f"{name} could not be compared: {reason}", markup=False)
    console.print(f"\n{result.certificate or 'no candidate stayed inside the budget on the data for choosing'}")
    if result.best is not None:
        result.best.save(out)
        console.print(f"{out}: {result.best.point.name}, {result.best.point.nbytes:,} bytes of weights")
    page = report or (out / "report.html" if result.best else None)
    if page is not None:
        write_report(page, report_of(result, model, out))
        if page.parent == out:
            add_file(out, page.name)
        console.print(f"{page}: the report")
    if result.best is None:
        raise typer.Exit(1)
