"""The verb that lets a compressed model learn."""

import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissom.cli.options import Confidence, Events, Length, Out, Relative
from lissom.cli.read import drawn, read_arrays, read_budgets
from lissom.cli.show import console
from lissom.cli.working import emit, working
from lissom.progress import Progress, Tell, quiet

if TYPE_CHECKING:
    from lissom.artifact import Opened
    from lissom.recover.folder import Learned

MOST = 10_000  # examples that certify
HELD_TOO = 1.06  # times what is learned from is read: a twentieth of it is held out


def recover(
    artifact: Annotated[Path, typer.Argument(help="folder of a compressed model")],
    data: Annotated[list[Path], typer.Option(help="texts (.txt, or .jsonl with a text in each line); else one .npz")],
    out: Out,
    original: Annotated[str | None, typer.Option(help="the model it was made from: learn what that predicts")] = None,
    labels: Annotated[bool, typer.Option(help="learn the data's own labels, of a text its next tokens")] = False,
    epochs: Annotated[float | None, typer.Option(help="passes over the data; by default 4")] = None,
    steps: Annotated[int | None, typer.Option(help="or steps")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="or tokens of text, of other data examples; no more is read")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="or minutes")] = None,
    until_budget: Annotated[
        list[str] | None,
        typer.Option(
            help="or sooner, certified to drop this at most by --test: such as 1%, or kl=0.05; all of several"
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="with --until-budget: a text or .npz that is not learned from")
    ] = None,
    relative: Relative = False,
    confidence: Confidence = "95%",
    train: Annotated[str, typer.Option(help="what moves: weights (in their formats), scales, lora or all")] = "weights",
    rank: Annotated[int, typer.Option(help="with lora: of the products put beside the weights")] = 16,
    optimizer: Annotated[str, typer.Option(help="the training algorithm, such as adamw, lion, muon, sam")] = "adamw",
    compare: Annotated[
        str | None,
        typer.Option(help="race training algorithms, such as sgd,adagrad,adamw, or all; the best is written"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="with --compare: runs of each", min=1)] = 3,
    lr: Annotated[float | None, typer.Option(help="the rate, as a share of what a weight is like")] = None,
    schedule: Annotated[str, typer.Option(help="of the rate: constant, linear, cosine or wsd")] = "cosine",
    batch: Annotated[int, typer.Option(help="examples of a step", min=1)] = 16,
    accumulate: Annotated[int, typer.Option(help="parts that a batch is cut into, for less memory", min=1)] = 1,
    checkpointing: Annotated[bool, typer.Option(help="compute activations again rather than keep them")] = False,
    ema: Annotated[float, typer.Option(help="keep an average of the weights, that stays by so much a step")] = 0.0,
    patience: Annotated[int | None, typer.Option(help="end after so many looks that were no better")] = None,
    hidden: Annotated[list[str] | None, typer.Option(help="wildcards of modules whose outputs are learned too")] = None,
    top_k: Annotated[
        int, typer.Option(help="remember so many probabilities of the original, which then need not be in memory")
    ] = 0,
    parallel: Annotated[
        str,
        typer.Option(
            help="with torchrun or --ray: how workers divide the work, by axes: data, shard, tensor, pipeline, such as "
            "data=2,tensor=4; by default data"
        ),
    ] = "",
    stages: Annotated[
        str, typer.Option(help="with pipeline=: the order of work: 1f1b, gpipe, interleaved, zerobubble or zbv")
    ] = "1f1b",
    gradients: Annotated[
        str, typer.Option(help="with torchrun or --ray: what gradients travel in, such as int8, int4, powersgd")
    ] = "float32",
    local: Annotated[
        int, typer.Option(help="with torchrun or --ray: steps that each worker takes by itself before all meet", min=0)
    ] = 0,
    ray: Annotated[
        str | None,
        typer.Option(
            help="let Ray start the workers: HOST:PORT of a cluster, auto for that of this machine, local for one's own"
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="with --ray: how many workers", min=1)] = None,
    loss: Annotated[str, typer.Option(help="kl, or mse of outputs that are no class scores")] = "kl",
    length: Length = 512,
    seed: Annotated[int, typer.Option(help="of the order of examples", min=0)] = 0,
    json_lines: Events = False,
) -> None:
    """Let a compressed model learn, in its compressed form, to do again what the original does.

    Whoever is stopped goes on where it was, by the same command. With --until-budget exit code 1 if it was not kept.
    """
    from lissom.artifact import open_folder
    from lissom.artifact.manifest import check_free
    from lissom.errors import DataError
    from lissom.evaluate import metric
    from lissom.recover.folder import race_folder
    from lissom.recover.parallel.layout import read_layout
    from lissom.recover.parallel.workers import is_first
    from lissom.recover.race import named
    from lissom.recover.training import Training

    if labels == (original is not None):
        raise DataError(
            "recover: give --original MODEL to learn what that predicts, or else --labels for the data's own"
        )
    training = Training(
        train=train,
        rank=rank,
        optimizer=optimizer,
        lr=lr,
        schedule=schedule,
        epochs=epochs,
        steps=steps,
        tokens=tokens,
        minutes=minutes,
        batch=batch,
        accumulate=accumulate,
        checkpointing=checkpointing,
        ema=ema,
        patience=patience,
        hidden=tuple(hidden or ()),
        top_k=top_k,
        loss=loss,
        gradients=gradients,
        stages=stages,
        local=local,
        seed=seed,
    )
    if until_budget and (compare or test is None or original is None):
        raise DataError(
            "--until-budget: give --original, and by --test examples that are not learned from; no --compare"
        )
    if test is not None and not until_budget:
        raise DataError("--test: it is what --until-budget is certified by; give that too, or leave it out")
    if compare and parallel:
        raise DataError("--parallel: a race is for one worker; leave it out, or --compare")
    recover_here = recover_by(ray, workers, compare)
    with working(json_lines) if is_first() else nullcontext(quiet) as tell:
        tell(Progress(stage="read", text=str(artifact)))
        check_free(out)
        opened = open_folder(artifact)
        examples = read_examples(data, opened, length, tokens)
        if compare is not None:
            learned = race_folder(
                artifact,
                examples,
                out,
                training,
                optimizers=named(compare),
                seeds=seeds,
                original=original,
                progress=tell,
            )
        else:
            tests = None if test is None else drawn(read_examples([test], opened, length), MOST)
            kind = metric("accuracy" if opened.tokenizer is None else "perplexity")
            budgets = read_budgets(until_budget, kind, None, confidence, relative) if until_budget else None
            learned = recover_here(
                artifact,
                examples,
                out,
                training,
                original=original,
                examples=tests,
                budgets=budgets,
                layout=read_layout(parallel),
                progress=tell,
            )
        page = write_page(learned, artifact, out, tell) if is_first() else out
    if not is_first():
        return
    if json_lines:
        figures = {"best": learned.curve.best, "looks": len(learned.curve.looks), "verdict": learned.verdict}
        losses = {"loss_before": learned.curve.before.held, "loss_after": learned.curve.after.held}
        emit("result", {"folder": str(out), "report": str(page), **losses, **figures})
    else:
        show_learned(learned, out, page)
    if until_budget and learned.verdict != "PASS":
        raise typer.Exit(1)


def recover_by(ray: str | None, workers: int | None, compare: str | None) -> Callable[..., "Learned"]:
    """What lets a folder's model learn: this process, or one of those of torchrun; or the workers of a Ray cluster.

    Raises:
        DataError: what is given does not go together.
    """
    from lissom.errors import DataError
    from lissom.recover.cluster import recover_on_ray
    from lissom.recover.folder import recover_folder

    if ray is None:
        if workers is not None:
            raise DataError("--workers: it is how many Ray starts; give --ray too, or start them with torchrun")
        return recover_folder
    if workers is None:
        raise DataError(f"--ray {ray}: how many workers? give --workers 2, say")
    if compare is not None:
        raise DataError("--ray: a race is for one worker; leave it out, or --compare")
    return partial(recover_on_ray, ray, workers)


def read_examples(files: list[Path], opened: "Opened", length: int, tokens: int | None = None) -> Any:
    """What is learned from: windows of texts, of which no more is read than is needed, or the arrays of a file.

    Raises:
        DataError: it cannot be read, or there are several files of arrays.
    """
    from lissom.calibrate.texts import read_windows
    from lissom.errors import DataError

    if opened.tokenizer is not None:
        most = None if tokens is None else ceil(tokens * HELD_TOO / length) + 1
        return read_windows(files, opened.tokenizer, length, most)
    if len(files) > 1:
        raise DataError(f"--data: {len(files)} files; give one .npz file with all examples")
    return read_arrays(files[0], opened.signature)


def write_page(learned: "Learned", artifact: Path, out: Path, tell: Tell) -> Path:
    """The report, beside what has learned."""
    from lissom.artifact import add_file
    from lissom.report.learning import write_learning

    page = out / "recovery.html"
    tell(Progress(stage="write", text=str(page)))
    write_learning(page, learned, title=artifact.name, command=shlex.join(["lissom", *sys.argv[1:]]))
    add_file(out, page.name)
    return page


def show_learned(learned: "Learned", out: Path, page: Path) -> None:
    """How the loss went, of several algorithms of each."""
    from lissom.report.learning import race_table

    if learned.contenders:
        console.print(race_table(learned.contenders))
    before, after = learned.curve.before, learned.curve.after
    console.print(
        f"{out}: the loss on what was held out went from {before.held:.4g} to {after.held:.4g}, "
        f"after {after.step:,} of {learned.curve.looks[-1].step:,} steps"
    )
    if learned.certificate is not None:
        console.print(str(learned.certificate))
    console.print(f"{page}: the report")
