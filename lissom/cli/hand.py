"""The verb that hands a model over to another runtime."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissom.cli.options import Json, Length, Model
from lissom.cli.read import read_arrays, text_windows
from lissom.cli.show import console, show

if TYPE_CHECKING:
    from lissom.export.targets import Export


def export(
    model: Model,
    to: Annotated[str, typer.Option(help="the runtime: gguf (llama.cpp, ollama), vllm, sglang, transformers, fpga")],
    out: Annotated[Path, typer.Option(help="the file or folder to make; it must not exist")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="a text, on which is measured what layers lose that cannot stay; for fpga .npz with arrays x and y"
        ),
    ] = None,
    windows: Annotated[int, typer.Option(help="windows of the text to use, at most", min=1)] = 64,
    length: Length = 512,
    part: Annotated[str | None, typer.Option(help="fpga: the chip, such as xcu250-figd2104-2L-e")] = None,
    clock_ns: Annotated[float | None, typer.Option(help="fpga: how long a cycle is", min=0.1)] = None,
    reuse: Annotated[int | None, typer.Option(help="fpga: how many products share a multiplier", min=1)] = None,
    bits: Annotated[int | None, typer.Option(help="fpga: bits of the numbers between layers", min=2, max=16)] = None,
    json_lines: Json = False,
) -> None:
    """Write a language model in the form that another runtime reads, or a module for an FPGA.

    A layer stays what it is where the runtime can hold that, and else becomes the nearest that it can; each one that
    changes is named.
    """
    from lissom.artifact import open_folder
    from lissom.export.targets import export_folder

    given = {"part": part, "clock_ns": clock_ns, "reuse": reuse, "bits": bits}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    lot = None
    if data is not None:
        opened = open_folder(model)
        arrays = opened.tokenizer is None
        lot = read_arrays(data, opened.signature) if arrays else text_windows(data, opened.tokenizer, length)[:windows]
    tell(export_folder(model, to, out, data=lot, **options), json_lines)


def tell(done: "Export", json_lines: bool) -> None:
    """What was handed over."""
    if not json_lines:
        for (own, form), count in Counter((layer.own, layer.form) for layer in done.layers).items():
            console.print(f"{count:4} x {own} -> {form}", highlight=False, markup=False)
        for layer in done.changed:
            console.print(str(layer), highlight=False, markup=False)
    cost = done.cost
    score = "" if cost is None else cost.metric
    figures = {} if cost is None else {f"{score} before": cost.original, score: cost.compressed, "KL": cost.kl}
    changed = {layer.layer: {"form": layer.form, "error": layer.error} for layer in done.changed}
    more = {"out": str(done.out), "bytes": sum(layer.nbytes for layer in done.layers)}
    report = done.report or {}
    show(figures, json_lines, {**more, "changed": changed, **report} if json_lines else {**more, **measured(report)})


def measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to say in a line each of a report."""
    parts = {"simulated ": "comparison", "estimated ": "total", "uncompressed ": "uncompressed"}
    return {f"{whose}{name}": value for whose, part in parts.items() for name, value in report.get(part, {}).items()}
