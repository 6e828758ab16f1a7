"""The command line: one function for each verb. The only file that imports lazily, so that help is there at once."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
import yaml
from rich.console import Console

from lissom.errors import DataError, LissomError, RecipeError

if TYPE_CHECKING:
    from lissom.artifact import Opened
    from lissom.estimate import Estimate
    from lissom.report.content import Report
    from lissom.search import Result
    from lissom.types import Recipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A trained PyTorch model, as small and fast as its quality budget allows, proven and served.",
)
WIDE = 140  # columns of a table that goes to a file or a pipe
console, notes = Console(width=None if sys.stdout.isatty() else WIDE), Console(stderr=True)

Model = Annotated[str, typer.Argument(help="folder of a model (Hugging Face or lissom), or a hub name")]
Data = Annotated[Path, typer.Option(help="a text (UTF-8) for language models; else .npz with arrays x and y")]
Out = Annotated[Path, typer.Option(help="the folder to make; it must not exist")]
Length = Annotated[int, typer.Option(help="tokens of a window", min=2)]


@app.command()
def compress(
    model: Model,
    recipe: Annotated[Path, typer.Option(help="recipe.yaml")],
    out: Out,
    data: Annotated[
        Path | None, typer.Option(help="a text to calibrate on; without it every input counts alike")
    ] = None,
    windows: Annotated[int, typer.Option(help="windows to calibrate on, at most", min=1)] = 128,
    length: Length = 512,
) -> None:
    """Compress a language model by a recipe, part by part."""
    import torch

    from lissom.artifact import compress_checkpoint
    from lissom.models import Checkpoint

    steps = read_recipe(recipe)
    checkpoint = Checkpoint(model)
    tokens = torch.empty(0, length, dtype=torch.long)
    if data is not None:
        tokens = text_windows(data, checkpoint.tokenizer(), length)[:windows]
    with working() as tell:
        compress_checkpoint(checkpoint.folder, steps, tokens, out, progress=tell)
    before, after = (sum(file.stat().st_size for file in f.glob("*.safetensors")) for f in (checkpoint.folder, out))
    console.print(f"{out}: {after:,} bytes of weights, {before / after:.2f} x smaller than {checkpoint.folder}")


@app.command()
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
    from lissom.report import frontier_table, write_report
    from lissom.search import optimize
    from lissom.types import Budget

    budget = Budget(max_drop=fraction("max-drop", max_drop), confidence=fraction("confidence", confidence))
    subject, examples = read_subject(model, data, length, windows)
    refuse_taken(out)
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


@app.command()
def evaluate(
    model: Model,
    data: Data,
    original: Annotated[str | None, typer.Option(help="the model to compare with, example by example")] = None,
    length: Length = 512,
    examples: Annotated[int, typer.Option(help="examples (windows of a text) to use, at most", min=1)] = 10_000,
    json_lines: Annotated[bool, typer.Option("--json", help="figures as one JSON object")] = False,
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


@app.command()
def bench(
    model: Model,
    prompt: Annotated[int, typer.Option(help="tokens of the prompt", min=1)] = 128,
    new: Annotated[int, typer.Option(help="tokens to generate", min=2)] = 32,
    json_lines: Annotated[bool, typer.Option("--json", help="figures as one JSON object")] = False,
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


@app.command()
def hardware(json_lines: Annotated[bool, typer.Option("--json", help="figures as one JSON object")] = False) -> None:
    """Say what this machine is, and measure its limits."""
    from lissom.hardware import describe, limits

    show(limits().as_dict(), json_lines, describe().as_dict())


@app.command()
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine only with a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes any that is free")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="LISSOM_API_KEY", help="key that clients must send")] = None,
    name: Annotated[str | None, typer.Option(help="name of the model; by default that of its folder")] = None,
) -> None:
    """Serve a model: OpenAI's API for language models, the Open Inference Protocol for others."""
    from lissom.artifact import open_folder
    from lissom.engine.kernels import lower
    from lissom.server import LanguageService, TensorService
    from lissom.server import serve as run

    opened = open_folder(model)
    called = name or opened.folder.resolve().name
    running = lower(opened.model)
    if opened.tokenizer is not None:
        service: Any = LanguageService(
            model=cast(Any, running), tokenizer=opened.tokenizer, name=called, evidence=opened.evidence
        )
    elif opened.signature is None:
        raise DataError(f"{model} does not say what goes in and out; save it with example=a batch to serve it")
    else:
        service = TensorService(module=running, name=called, signature=opened.signature, evidence=opened.evidence)
    run([service], host=host, port=port, api_key=api_key, announce=lambda url: print(f"{called} at {url}", flush=True))


def read_recipe(file: Path) -> "Recipe":
    """A recipe from a YAML file.

    Raises:
        RecipeError: it cannot be read or holds no recipe.
    """
    from lissom.types import Recipe

    try:
        return Recipe.of(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{file} cannot be read: {' '.join(str(error).split())}") from None


def read_text(file: Path) -> str:
    """A text file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as text: {error}") from None


def text_windows(file: Path, tokenizer: Any, length: int) -> Any:
    """A text file as windows of tokens."""
    from lissom.calibrate import token_windows

    return token_windows(read_text(file), tokenizer, length)


def read_arrays(file: Path, signature: Any) -> tuple[Any, Any]:
    """Inputs and classes from an .npz file with arrays x and y; floats come in the precision that the model takes.

    Raises:
        DataError: it cannot be read, holds no such arrays, or they do not fit each other or the model.
    """
    import numpy as np
    import torch

    try:
        with np.load(file, allow_pickle=False) as arrays:
            x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]).long()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no .npz file with arrays x and y: {error}") from None
    if x.shape[:1] != y.shape:
        raise DataError(
            f"{file}: x is {list(x.shape)} and y is {list(y.shape)}; y needs one class for each example of x"
        )
    takes: Any = signature["inputs"][0] if signature else {"shape": [-1, *x.shape[1:]], "datatype": "FP32"}
    if list(x.shape[1:]) != takes["shape"][1:]:
        raise DataError(f"{file}: x is {list(x.shape)}, and the model takes {takes['shape']}, -1 being any number")
    floats = {"FP64": torch.float64, "FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}
    return x.to(floats.get(takes["datatype"], x.dtype)) if x.is_floating_point() else x, y


def read_lot(file: Path, opened: "Opened", length: int, most: int) -> Any:
    """Examples to evaluate on: windows of a text, or arrays."""
    if opened.tokenizer is not None:
        return text_windows(file, opened.tokenizer, length)[:most]
    x, y = read_arrays(file, opened.signature)
    return x[:most], y[:most]


def read_subject(model: str, data: Path, length: int, windows: int) -> tuple[Any, Any]:
    """What to optimize, and the examples: a module with arrays, or a language model with windows of a text."""
    from lissom.artifact import MANIFEST, open_folder
    from lissom.models import Checkpoint
    from lissom.models.checkpoint import read_json

    folder = Path(model)
    if (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get("kind") == "module":
        opened = open_folder(folder)
        return opened.model, read_arrays(data, opened.signature)
    return model, text_windows(data, Checkpoint(model).tokenizer(), length)[:windows]


def refuse_taken(out: Path) -> None:
    """See before hours of work that the result can be written.

    Raises:
        ArtifactError: the name is taken.
    """
    from lissom.errors import ArtifactError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtifactError(f"{out} exists already; remove it or choose another name")


def example_of(signature: Any, model: str) -> Any:
    """A batch of noise in the shape that a module takes.

    Raises:
        DataError: the folder does not say the shape.
    """
    import torch

    if signature is None:
        raise DataError(f"{model} does not say what goes in; save it with example=a batch to bench it")
    return torch.randn([1 if size == -1 else size for size in signature["inputs"][0]["shape"]])


def fraction(name: str, text: str) -> float:
    """A fraction written as 0.01 or 1%.

    Raises:
        DataError: it is neither.
    """
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise DataError(f"--{name} {text!r} is no fraction; write 1% or 0.01") from None


def show(figures: Any, json_lines: bool, more: Any = None) -> None:
    """Print figures, one a line, or as one JSON object."""
    from dataclasses import asdict
    from json import dumps

    found = {name: figure for name, figure in figures.items() if figure is not None}
    if json_lines:
        print(dumps({**(more or {}), **{name: asdict(figure) for name, figure in found.items()}}))
        return
    for name, figure in {**(more or {}), **found}.items():
        shown = f"{figure:,}" if isinstance(figure, int) else figure
        console.print(f"{name.replace('_', ' '):24} {shown}", highlight=False, markup=False)


def report_of(result: "Result", model: str, out: Path) -> "Report":
    """What the report shows of a result."""
    import platform
    from datetime import date

    import torch

    from lissom.artifact import MANIFEST
    from lissom.artifact.manifest import package_version
    from lissom.hardware import describe
    from lissom.models.checkpoint import read_json
    from lissom.report.content import Report

    files = read_json(out / MANIFEST)["files"] if result.best else {}
    return Report(
        title=Path(model).name,
        points=result.points,
        chosen=result.best.point.name if result.best else None,
        budget=result.budget,
        metric=result.metric,
        target=result.target,
        certificate=result.certificate,
        recipe=result.best.recipe if result.best else None,
        machine={name: str(value) for name, value in describe().as_dict().items()},
        versions={"lissom": package_version(), "torch": torch.__version__, "python": platform.python_version()},
        hashes={name: file["sha256"] for name, file in files.items()},
        made=date.today().isoformat(),
    )


@contextmanager
def working() -> Iterator[Any]:
    """Say on a terminal what is being done; stay quiet elsewhere."""
    with notes.status("start") as status:
        yield lambda text: status.update(text)


def main() -> None:
    """The command `lissom`: a user's mistake is one line on the error stream and exit code 2."""
    try:
        app()
    except LissomError as error:
        print(f"lissom: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
