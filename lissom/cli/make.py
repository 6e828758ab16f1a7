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
    prefer: Annotated[
        str, typer.Option(help="what cheap means: size, latency, both, prefill or decode; or weights: size=1,decode=2")
    ] = "both",
    length: Length = 512,
    windows: Annotated[int, typer.Option(help="windows of a text to use, at most", min=1)] = 1000,
    max_ram: Annotated[
        str | None, typer.Option(help="memory that the search may take, such as 4GB; by default any")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="where layers in all forms are kept, to go on and to recut; else OUT.bank"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="where to write the HTML report; by default OUT/report.html")
    ] = None,
) -> None:
    """Find the cheapest model that is certified to stay inside the budget, and write it.

    Whoever is stopped goes on where it was, by the same command.
    """
    from lissom.artifact import add_file
    from lissom.artifact.manifest import check_free
    from lissom.report import frontier_table, write_report
    from lissom.search import optimize
    from lissom.types import Budget

    budget = Budget(max_drop=fraction("max-drop", max_drop), confidence=fraction("confidence", confidence))
    bound = None if max_ram is None else size("max-ram", max_ram)
    subject, examples = read_subject(model, data, length, windows)
    check_free(out)
    bank = work or bank_of(out)
    with working() as tell:
        result = optimize(
            subject,
            examples,
            budget,
            target=target,
            prefer=weights(prefer),
            work=bank,
            max_ram=bound,
            progress=tell,
        )
    console.print(frontier_table(result.points, result.best.point.name if result.best else None, metric=result.metric))
    for name, reason in result.failed.items():
        console.print(f"{name} could not be compared: {reason}", markup=False)
    console.print(f"\n{result.certificate or 'no candidate stayed inside the budget on the data for choosing'}")
    if result.best is not None:
        result.best.save(out)
        console.print(f"{out}: {result.best.point.name}, {result.best.point.nbytes:,} bytes of weights")
        console.print(f"{bank}: layers in all forms, for `lissom recut {out}`; remove it when you need no other cut")
    page = report or (out / "report.html" if result.best else None)
    if page is not None:
        write_report(page, report_of(result, model, out))
        if page.parent == out:
            add_file(out, page.name)
        console.print(f"{page}: the report")
    if result.best is None:
        raise typer.Exit(1)


def recut(
    model: Annotated[Path, typer.Argument(help="what optimize wrote; its layers in all forms must still be there")],
    out: Out,
    size_: Annotated[str | None, typer.Option("--size", help="bytes that the weights may take, such as 300MB")] = None,
    max_drop: Annotated[str | None, typer.Option(help="accepted drop, in place of a size, such as 2%")] = None,
    work: Annotated[Path | None, typer.Option(help="where optimize kept the layers; by default MODEL.bank")] = None,
    original: Annotated[
        str | None, typer.Option(help="for a module: the folder that optimize was given; its data is not needed")
    ] = None,
) -> None:
    """Build another point of a frontier that optimize found, without calibrating again."""
    from lissom.artifact.manifest import check_free
    from lissom.cli.read import read_module
    from lissom.search import recut as cut
    from lissom.types import Budget

    budget = None if max_drop is None else Budget(max_drop=fraction("max-drop", max_drop))
    nbytes = None if size_ is None else size("size", size_)
    check_free(out)
    module, example = (None, None) if original is None else read_module(original)
    found = cut(work or bank_of(model), out, size=nbytes, budget=budget, model=module, example=example)
    sure = f"certified: {found.verdict}" if found.verdict else "not certified: see `lissom certify`"
    console.print(
        f"{out}: {found.nbytes:,} bytes of weights; foreseen: KL {found.kl:.3g}, drop {found.drop:.2%}; {sure}"
    )


def bank_of(out: Path) -> Path:
    """Where what a result was made from is kept."""
    return out.with_name(f"{out.name}.bank")


def weights(prefer: str) -> "str | dict[str, float]":
    """A preference: a name, or weights such as size=1,decode=2.

    Raises:
        DataError: a weight is no number.
    """
    from lissom.errors import DataError

    if "=" not in prefer:
        return prefer
    pairs = [part.partition("=") for part in prefer.split(",")]
    try:
        return {name.strip(): float(weight) for name, _, weight in pairs}
    except ValueError:
        raise DataError(f"--prefer {prefer!r}: write weights such as size=1,decode=2") from None
