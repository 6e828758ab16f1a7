"""The verb that hands a model over to another runtime."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissom.cli.options import Json, Length, Model
from lissom.cli.read import drawn, read_arrays, text_windows
from lissom.cli.show import console, show
from lissom.errors import DataError

if TYPE_CHECKING:
    from lissom.export.targets import Export


def export(
    model: Model,
    to: Annotated[
        str,
        typer.Option(
            help="the runtime: of language models gguf (llama.cpp, ollama), vllm, sglang, transformers; of any model "
            "onnx, openvino, torch (an archive of torch.export)"
        ),
    ],
    out: Annotated[Path, typer.Option(help="the file or folder to make; it must not exist")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="a text, or for another module .npz with arrays x and y: on it is measured what layers lose that "
            "cannot stay as they are"
        ),
    ] = None,
    windows: Annotated[int, typer.Option(help="windows of the text, or examples, to use, at most", min=1)] = 64,
    length: Length = 512,
    json_lines: Json = False,
) -> None:
    """Write a model in the form that another runtime reads.

    A layer stays what it is where the runtime can hold that, and else becomes the nearest that it can; each one that
    changes is named.
    """
    from lissom.export.targets import export_folder

    lot = None if data is None else examples(model, data, length, windows)
    tell(export_folder(model, to, out, data=lot), json_lines)


def examples(model: str, data: Path, length: int, windows: int) -> Any:
    """What is lost is measured on: windows of a text, or arrays.

    Raises:
        DataError: it cannot be read, or the model is an encoder of texts.
    """
    from lissom.artifact import open_folder
    from lissom.models.text_encoder import TextEncoder

    opened = open_folder(model)
    if isinstance(opened.model, TextEncoder):
        raise DataError(f"--data: {model} turns texts into vectors, of which no answer is right; leave it out")
    if opened.tokenizer is not None:
        return text_windows(data, opened.tokenizer, length)[:windows]
    return drawn(read_arrays(data, opened.signature), windows)


def tell(done: "Export", json_lines: bool) -> None:
    """What was handed over."""
    if not json_lines:
        for (own, form), count in Counter((layer.own, layer.form) for layer in done.layers).items():
            console.print(f"{count:4} x {own} -> {form}", highlight=False, markup=False)
        for layer in done.changed:
            console.print(str(layer), highlight=False, markup=False)
    cost = done.cost
    figures = {} if cost is None else {f"{cost.metric} before": cost.original, cost.metric: cost.compressed}
    if cost is not None and cost.kl is not None:
        figures["KL"] = cost.kl
    changed = {layer.layer: {"form": layer.form, "error": layer.error} for layer in done.changed}
    more = {"out": str(done.out), "bytes": sum(layer.nbytes for layer in done.layers)}
    show(figures, json_lines, {**more, "changed": changed} if json_lines else more)
