"""Verbs that make a smaller model."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from lissom.cli.frontiers import places_of, show_places, show_result, told_of, write_results
from lissom.cli.options import Clusters, Confidence, Data, Drops, Events, Length, Model, Out, Relative, Task
from lissom.cli.read import (
    read_again,
    read_budgets,
    read_clusters,
    read_recipe,
    read_scored,
    read_subject,
    size,
    text_windows,
)
from lissom.cli.show import console
from lissom.cli.working import emit, working
from lissom.progress import Progress, quiet


def compress(
    model: Model,
    recipe: Annotated[Path, typer.Option(help="recipe.yaml; that of SparseML or llm-compressor too")],
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
    json_lines: Events = False,
) -> None:
    """Compress a language model by a recipe, part by part.

    Of several processes that torchrun has started each reads its share of the windows, and the first one writes.
    """
    import torch

    from lissom.artifact import compress_checkpoint
    from lissom.models import Checkpoint
    from lissom.recover.parallel.workers import is_first, workers

    with working(json_lines) if is_first() else nullcontext(quiet) as tell, workers() as team:
        tell(Progress(stage="read", text=model))
        steps, bound = read_recipe(recipe, model), None if max_ram is None else size("max-ram", max_ram)
        checkpoint = Checkpoint(model)
        tokens = torch.empty(0, length, dtype=torch.long)
        if data is not None:
            tokens = text_windows(data, checkpoint.tokenizer(), length)[:windows][team.rank :: team.count]
        more: dict[str, Any] = {"entropy_coding": entropy_coding, "group": team.group, "progress": tell}
        compress_checkpoint(checkpoint.folder, steps, tokens, out, max_ram=bound, **more)
    if not is_first():
        return
    before, after = (sum(file.stat().st_size for file in f.glob("*.safetensors")) for f in (checkpoint.folder, out))
    if json_lines:
        emit("result", {"folder": str(out), "bytes_before": before, "bytes_after": after})
        return
    console.print(f"{out}: {after:,} bytes of weights, {before / after:.2f} x smaller than {checkpoint.folder}")


def optimize(
    model: Model,
    data: Data,
    out: Out,
    budget: Drops = None,
    relative: Relative = False,
    confidence: Confidence = "95%",
    task: Task = None,
    task_data: Annotated[
        Path | None, typer.Option(help="the file of --task, which is scored; DATA calibrates then")
    ] = None,
    clusters: Clusters = None,
    target: Annotated[
        str,
        typer.Option(
            help="the hardware to make it for: cpu, cuda; or what is not here and is costed, cuda:h200, tpu:v5e or "
            "fpga:PART; several with commas, each of which is written to OUT/TARGET (see `lissom hardware`)"
        ),
    ] = "cpu",
    prefer: Annotated[
        str, typer.Option(help="what cheap means: size, latency, both, prefill or decode; or weights: size=1,decode=2")
    ] = "both",
    length: Length = 512,
    windows: Annotated[int, typer.Option(help="windows of a text to use, at most", min=1)] = 1000,
    max_ram: Annotated[
        str | None, typer.Option(help="memory that the search may take, such as 4GB; by default any")
    ] = None,
    prompt: Annotated[
        int | None, typer.Option(help="tokens of the prompt of the answer that is timed; by default 64", min=1)
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="where layers in all forms are kept, to go on and to recut; else OUT.bank"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="where to write the HTML report; by default OUT/report.html")
    ] = None,
    json_lines: Events = False,
) -> None:
    """Find the cheapest model that is certified to stay inside the budget, and write it.

    Whoever is stopped goes on where it was, by the same command.
    """
    from lissom.artifact.manifest import check_free
    from lissom.search import optimize

    bank = work or bank_of(out)
    with working(json_lines) as tell:
        tell(Progress(stage="read", text=model))
        bound = None if max_ram is None else size("max-ram", max_ram)
        subject, examples = read_subject(model, data, length, windows, task)
        scored, kind = read_scored(subject, task, task_data)
        budgets = read_budgets(budget, kind, task, confidence, relative)
        check_free(out)
        results = optimize(
            subject,
            examples,
            budgets,
            examples=scored,
            clusters=read_clusters(clusters),
            target=[name.strip() for name in target.split(",")],
            prefer=weights(prefer),
            work=bank,
            max_ram=bound,
            prompt=prompt,
            progress=tell,
        )
        if not json_lines:
            for result in results.values():
                show_result(result)
        pages = write_results(results, model, out, report, tell)
    places = places_of(results, out)
    if json_lines:
        emit("result", {**told_of(results, places, pages), "work": str(bank)})
    else:
        show_places(results, places, bank, pages)
    if any(result.best is None for result in results.values()):
        raise typer.Exit(1)


def recut(
    model: Annotated[Path, typer.Argument(help="what optimize wrote; its layers in all forms must still be there")],
    out: Out,
    size_: Annotated[str | None, typer.Option("--size", help="bytes that the weights may take, such as 300MB")] = None,
    budget: Drops = None,
    relative: Relative = False,
    confidence: Confidence = "95%",
    data: Annotated[Path | None, typer.Option(help="what optimize was given, to certify the cut too")] = None,
    length: Length = 512,
    windows: Annotated[int, typer.Option(help="with --data: windows, as for optimize", min=1)] = 1000,
    task: Task = None,
    task_data: Annotated[Path | None, typer.Option(help="the file of --task, as for optimize")] = None,
    clusters: Clusters = None,
    work: Annotated[Path | None, typer.Option(help="where optimize kept the layers; by default MODEL.bank")] = None,
    original: Annotated[
        str | None, typer.Option(help="the model that optimize was given: for a module, and with --data")
    ] = None,
) -> None:
    """Build another point of a frontier that optimize found, without calibrating again; with its data certify it.

    Exit code 1 if it was certified and did not pass.
    """
    from lissom.artifact.manifest import check_free
    from lissom.cli.pairs import is_encoder
    from lissom.cli.read import is_module, read_module
    from lissom.search import recut as cut

    nbytes = None if size_ is None else size("size", size_)
    check_free(out)
    lots, scored, kind = read_again(original, data, length, windows, task, task_data)
    budgets = read_budgets(budget, kind, task, confidence, relative) if budget else None
    given = original and (is_module(original) or is_encoder(original))
    module, example = read_module(original) if original and given else (None, None)
    found = cut(
        work or bank_with(model),
        out,
        size=nbytes,
        budget=budgets,
        model=module,
        example=example,
        data=lots,
        examples=scored,
        clusters=read_clusters(clusters),
        target=target_of(model),
    )
    drops = "".join(f"drop of {name} {drop:.2%}, " for name, drop in found.drops.items())
    sure = f"certified: {found.verdict}" if found.verdict else "not certified: give --data, or see `lissom certify`"
    console.print(f"{out}: {found.nbytes:,} bytes of weights; foreseen: {drops}KL {found.kl:.3g}; {sure}")
    if found.certificate is not None:
        console.print(str(found.certificate))
        if found.verdict != "PASS":
            raise typer.Exit(1)


def bank_of(out: Path) -> Path:
    """Where what a result was made from is kept."""
    return out.with_name(f"{out.name}.bank")


def bank_with(model: Path) -> Path:
    """Where what a result was made from is: beside it, or beside the folder of the results for several targets."""
    own, shared = bank_of(model), bank_of(model.absolute().parent)
    return shared if shared.is_dir() and not own.is_dir() else own


def target_of(model: Path) -> str | None:
    """The target that a result was made for, as far as it says."""
    from lissom.artifact import MANIFEST
    from lissom.files import read_json

    file = model / MANIFEST
    report = read_json(file).get("report") if file.is_file() else None
    return report and report.get("target")


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
