"""Verbs that hand a model over to another runtime, and that see what became of it there."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lissom.cli.options import Confidence, Json, Length, Model
from lissom.cli.read import fraction, read_arrays, text_windows
from lissom.cli.show import console, show
from lissom.errors import DataError

if TYPE_CHECKING:
    from lissom.export.targets import Export
    from lissom.server.verify import Verified


def export(
    model: Model,
    to: Annotated[
        str,
        typer.Option(
            help="the runtime: of language models gguf (llama.cpp, ollama), vllm, sglang, transformers; of any model "
            "onnx, openvino, executorch, torch (an archive of torch.export), tpu; of small networks fpga"
        ),
    ],
    out: Annotated[Path, typer.Option(help="the file or folder to make; it must not exist")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="a text, or for another module .npz as for optimize: on it is measured what layers lose that "
            "cannot stay as they are; fpga needs it"
        ),
    ] = None,
    windows: Annotated[int, typer.Option(help="windows of the text to use, at most", min=1)] = 64,
    length: Length = 512,
    topology: Annotated[str | None, typer.Option(help="tpu: the chips to compile for, such as v5e-8")] = None,
    part: Annotated[str | None, typer.Option(help="fpga: the chip, such as xcu250-figd2104-2L-e")] = None,
    clock_ns: Annotated[float | None, typer.Option(help="fpga: how long a cycle is", min=0.1)] = None,
    reuse: Annotated[int | None, typer.Option(help="fpga: how many products share a multiplier", min=1)] = None,
    bits: Annotated[int | None, typer.Option(help="fpga: bits of the numbers between layers", min=2, max=16)] = None,
    batch: Annotated[int | None, typer.Option(help="executorch: examples at once, at most", min=1)] = None,
    tokens: Annotated[int | None, typer.Option(help="executorch: tokens of a text, at most", min=1)] = None,
    json_lines: Json = False,
) -> None:
    """Write a model in the form that another runtime reads.

    A layer stays what it is where the runtime can hold that, and else becomes the nearest that it can; each one that
    changes is named.
    """
    from lissom.export.targets import export_folder

    lot = None if data is None else examples(model, data, length, windows)
    given = {"topology": topology, "part": part, "clock_ns": clock_ns, "reuse": reuse, "bits": bits}
    given |= {"batch": batch, "tokens": tokens}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    tell(export_folder(model, to, out, data=lot, **options), json_lines)


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
    if opened.tokenizer is None:
        return read_arrays(data, opened.signature)
    return text_windows(data, opened.tokenizer, length)[:windows]


def tell(done: "Export", json_lines: bool) -> None:
    """What was handed over."""
    if not json_lines:
        for (own, form), count in Counter((layer.own, layer.form) for layer in done.layers).items():
            console.print(f"{count:4} x {own} -> {form}", highlight=False, markup=False)
        for layer in done.changed:
            console.print(str(layer), highlight=False, markup=False)
    cost, report = done.cost, done.report or {}
    score = "" if cost is None else cost.metric
    figures = {} if cost is None else {f"{score} before": cost.original, score: cost.compressed, "KL": cost.kl}
    changed = {layer.layer: {"form": layer.form, "error": layer.error} for layer in done.changed}
    more = {"out": str(done.out), "bytes": sum(layer.nbytes for layer in done.layers)}
    show(figures, json_lines, {**more, "changed": changed, **report} if json_lines else {**more, **measured(report)})


def measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to say in a line each of a report."""
    parts = {"comparison": "simulated ", "total": "estimated ", "uncompressed": "uncompressed "}
    parts |= {"lowered": "", "refused": ""}
    return {f"{whose}{name}": value for part, whose in parts.items() for name, value in report.get(part, {}).items()}


def verify(
    url: Annotated[str, typer.Argument(help="of a server of OpenAI's completions: vLLM, llama.cpp, lissom, ...")],
    against: Annotated[str, typer.Option(help="folder of the model that it should serve")],
    data: Annotated[Path, typer.Option(help="a text, from which prompts are taken")],
    max_kl: Annotated[float, typer.Option(help="nats per token that it may be from the model", min=0)] = 0.05,
    confidence: Confidence = "95%",
    requests: Annotated[int, typer.Option(help="prompts, each of which is asked twice", min=2)] = 40,
    prompt: Annotated[int, typer.Option(help="tokens of a prompt", min=2)] = 32,
    new: Annotated[int, typer.Option(help="tokens to write", min=1)] = 32,
    at_once: Annotated[int, typer.Option(help="requests at once", min=1)] = 4,
    name: Annotated[str | None, typer.Option(help="the model to ask for; by default the server's first")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LISSOM_API_KEY", help="key that the server wants")] = None,
    json_lines: Json = False,
) -> None:
    """Certify that an endpoint serves a model, by how far what it writes is from what that would; else exit code 1."""
    from lissom.artifact import open_folder
    from lissom.engine.lower import lower
    from lissom.server.verify import Endpoint, Judge, verify
    from lissom.types import Budget

    endpoint = Endpoint(url, name, api_key)
    opened = open_folder(against)
    if opened.tokenizer is None:
        raise DataError(f"--against {against} is no language model, and completions are of those only")
    prompts = text_windows(data, opened.tokenizer, prompt)[:requests].tolist()
    budget = Budget(max_drop=max_kl, confidence=fraction("confidence", confidence))
    judge = Judge(lower(opened.model), opened.tokenizer)
    found = verify(endpoint, judge, prompts, budget, tokens=new, at_once=at_once)
    told_of(found, json_lines)
    if found.certificate.verdict != "PASS":
        raise typer.Exit(1)


def told_of(found: "Verified", json_lines: bool) -> None:
    """What was found of an endpoint."""
    figures = {
        "certificate": found.certificate,
        "KL from the model": found.kl,
        "likeliest at 0": found.likeliest,
        "seconds of a request": found.seconds,
    }
    more: dict[str, float | str] = {
        "largest gap, nats": round(found.largest, 4),
        "tokens per s": round(found.tokens_per_s, 1),
    }
    more["requests that failed"] = len(found.failed)
    if found.failed:
        more["first failure"] = found.failed[0]
    show(figures, json_lines, more)


def deploy(
    model: Model,
    to: Annotated[
        str, typer.Option(help="compose, kserve or ray (lissom's own server), vllm or ray-llm (vLLM's engine)")
    ],
    out: Annotated[Path, typer.Option(help="the folder to make; it must not exist")],
    name: Annotated[str | None, typer.Option(help="of the service; by default that of the model's folder")] = None,
    image: Annotated[str, typer.Option(help="of lissom's server, built by examples/service/Dockerfile")] = "lissom",
    cores: Annotated[int, typer.Option(help="of a replica", min=1)] = 2,
    replicas: Annotated[str, typer.Option(help="at least and at most, such as 1-4")] = "1-1",
    at_once: Annotated[int, typer.Option(help="sequences that a replica takes at once", min=1)] = 16,
    context: Annotated[int | None, typer.Option(help="tokens of a sequence at most; by default the model's")] = None,
) -> None:
    """Write the configuration of a cluster for a model, with the memory that it is foreseen to take."""
    from lissom.cli.foresee import foreseen
    from lissom.errors import RecipeError
    from lissom.export.deploy import Plan
    from lissom.export.deploy import deploy as write
    from lissom.hardware import limits
    from lissom.server import FolderService

    called = name or Path(model).resolve().name
    least, _, most = replicas.partition("-")
    if not (least.isdecimal() and (most or least).isdecimal() and int(least) <= int(most or least)):
        raise RecipeError(f"--replicas {replicas!r}: give the least and the most, such as 1-4")
    row = foreseen(FolderService(folder=model, name=called, max_batch=at_once), limits(0.3))
    plan = Plan(
        folder=Path(model),
        name=called,
        image=image,
        nbytes=int(row["bytes"]),
        cores=cores,
        replicas=(int(least), int(most or least)),
        at_once=at_once,
        context=context,
    )
    done = write(plan, to, out)
    console.print(f"{done}: {', '.join(sorted(file.name for file in done.iterdir()))}", highlight=False, markup=False)
