"""Verbs that tell what could be done: techniques, what a recipe would make of a model, how devices would divide it."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from lissom.cli.options import Events, Json, Length, Model
from lissom.cli.read import read_recipe, text_windows
from lissom.cli.read import size as read_size
from lissom.cli.show import console
from lissom.cli.working import emit, working
from lissom.errors import RecipeError, meant

if TYPE_CHECKING:
    from lissom.plan import Plan
    from lissom.search.explain import Explanation


def techniques(
    name: Annotated[str | None, typer.Argument(help="one technique; all of them without it")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="as one JSON list")] = False,
) -> None:
    """List the techniques: the paper of each, the statistics it needs, its knobs and their defaults."""
    from dataclasses import asdict

    from lissom.techniques import TECHNIQUES
    from lissom.techniques.describe import describe

    if name is not None and name not in TECHNIQUES:
        raise RecipeError(f"unknown technique {name!r}; there are {', '.join(TECHNIQUES)}{meant(name, TECHNIQUES)}")
    found = [describe(technique) for technique in (TECHNIQUES if name is None else [name])]
    if json_lines:
        print(dumps([asdict(one) for one in found]))
        return
    for one in found:
        needs = " and ".join(one.statistics) or ("no data" if one.grain in ("layer", "stream") else "data")
        console.print(f"[bold]{one.name}[/]  a {one.grain} at a time, from {needs}", highlight=False)
        lines = [one.title, *map(str, one.papers), ", ".join(map(str, one.knobs)) or "no knobs"]
        console.print("\n".join(f"  {line}" for line in lines), highlight=False, markup=False)


def explain(
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml; that of SparseML or llm-compressor too")],
    model: Model,
    json_lines: Json = False,
) -> None:
    """Say what a recipe would do to each layer: steps, bytes before and after, and the kernel that would run it."""
    from lissom.search.explain import explain as foresee

    found = foresee(model, read_recipe(recipe, model))
    if json_lines:
        print(dumps(found.as_dict()))
        return
    console.print(table_of(found))
    ratio = found.bytes_before / found.bytes_after
    bound = "at most " * any(layer.at_most for layer in found.layers)
    console.print(
        f"{found.bytes_before:,} bytes of weights would become {bound}{found.bytes_after:,}, {ratio:.2f} x smaller"
    )


def sensitivity(
    model: Model,
    data: Annotated[Path, typer.Option(help="a text (UTF-8) to look at the model with")],
    size: Annotated[str | None, typer.Option(help="bytes that all weights may take, such as 4.5MB")] = None,
    out: Annotated[Path | None, typer.Option(help="with --size: where to write the mixed recipe")] = None,
    bits: Annotated[str, typer.Option(help="bits to try for the layers of the blocks")] = "2,3,4,5,6",
    group: Annotated[int, typer.Option(help="inputs that share a scale; 0: a whole row", min=0)] = 64,
    windows: Annotated[int, typer.Option(help="windows of the text to use, at most", min=1)] = 32,
    length: Length = 512,
    cache: Annotated[Path | None, typer.Option(help="a folder that remembers the figures")] = None,
    max_ram: Annotated[str | None, typer.Option(help="memory that may be taken, such as 4GB; by default any")] = None,
    json_lines: Json = False,
) -> None:
    """Foresee what each bit width would cost at each layer of a language model; mix them for a size."""
    from lissom.models import Checkpoint
    from lissom.search.foresee import foreseen
    from lissom.search.mixed import ENDS, candidates_for, mix

    if (size is None) != (out is None):
        raise RecipeError("--size and --out belong together: the bytes to keep, and the recipe to write")
    if out is not None and out.exists():
        raise RecipeError(f"{out} exists already; remove it or choose another name")
    nbytes = None if size is None else read_size("size", size)
    bound = None if max_ram is None else read_size("max-ram", max_ram)
    checkpoint = Checkpoint(model)
    lot = text_windows(data, checkpoint.tokenizer(), length)[:windows]
    blocks = [{"technique": "gptq", "bits": width, "group": group} for width in widths(bits)]
    ends = [{**end, "group": group} for end in ENDS]
    with working() as tell:
        candidates = candidates_for(checkpoint, blocks, ends)
        found = foreseen(checkpoint, lot, candidates, cache=cache, max_ram=bound, progress=tell)
    if nbytes is not None and out is not None:
        recipe = mix(checkpoint, found, nbytes)
        out.write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False), encoding="utf-8")
    if json_lines:
        print(dumps({name: [option.as_dict() for option in own] for name, own in found.items()}))
        return
    for name, own in found.items():
        costs = "  ".join(f"{option.steps[-1].knobs['bits']} bits {option.kl:.2g}" for option in own)
        console.print(f"{name}  {costs}", highlight=False, markup=False)
    if out is not None:
        console.print(
            f"{out}: a recipe of at most {nbytes:,} bytes; the figures are the KL foreseen of each layer alone"
        )


def plan(
    model: Annotated[str, typer.Argument(help="folder with a config.json (weights are not needed), or a hub name")],
    devices: Annotated[int, typer.Option(help="how many; of cpu, how many workers share its cores")] = 1,
    device: Annotated[
        str, typer.Option(help="h100, h200, b200, a100, mi300x, tpu-v5e, tpu-v5p, tpu-v6e; or cpu, timed here and now")
    ] = "cpu",
    link: Annotated[
        str | None, typer.Option(help="what each device can send to other nodes, such as 50GB/s or 400Gb/s")
    ] = None,
    node: Annotated[
        int | None, typer.Option(help="devices of a node; by default 8 where there is a link, else all")
    ] = None,
    purpose: Annotated[str, typer.Option("--for", help="compress, recover or serve")] = "recover",
    batch: Annotated[
        int | None, typer.Option(help="windows of a step, or sequences at once, of all together; by default 16 or more")
    ] = None,
    length: Length = 512,
    new: Annotated[int, typer.Option(help="with --for serve: tokens made for each prompt", min=1)] = 256,
    bits: Annotated[
        float | None,
        typer.Option(
            help="of a weight in the blocks; by default as stored, or as the config says; recovery on cpu is timed "
            "with 2 to 8"
        ),
    ] = None,
    efficiency: Annotated[
        float | None, typer.Option(help="the share of a device's peak that products get; else it is assumed")
    ] = None,
    train: Annotated[str, typer.Option(help="with --for recover: what moves, weights or scales")] = "weights",
    optimizer: Annotated[str, typer.Option(help="with --for recover: as for that")] = "adamw",
    gradients: Annotated[
        str, typer.Option(help="with --for recover: float32, int8, int4, ternary or sign")
    ] = "float32",
    checkpointing: Annotated[bool, typer.Option(help="with --for recover: compute activations again")] = False,
    original: Annotated[
        str, typer.Option(help="with --for recover: whole on each device, split like what learns, or remembered")
    ] = "whole",
    seconds: Annotated[float, typer.Option(help="with --device cpu: to time its pieces, about", min=0)] = 8.0,
    top: Annotated[int, typer.Option(help="splits to show", min=1)] = 10,
    json_lines: Events = False,
) -> None:
    """Foresee how long a step takes on so many devices, and their memory and traffic, for each way to divide them."""
    from lissom.plan import plan_devices

    with working(json_lines) as tell:
        found = plan_devices(
            model,
            devices=devices,
            device=device,
            link=link,
            node=node,
            purpose=purpose,
            batch=batch,
            length=length,
            new=new,
            bits=bits,
            efficiency=efficiency,
            train=train,
            optimizer=optimizer,
            gradients=gradients,
            checkpointing=checkpointing,
            original=original,
            seconds=seconds,
            progress=tell,
        )
    if json_lines:
        emit("result", found.as_dict(top))
        return
    console.print(table_of_splits(found, top))
    for line in (*found.assumed, *found.told()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def widths(bits: str) -> list[int]:
    """Bit widths, written with commas.

    Raises:
        RecipeError: there is something else among them.
    """
    try:
        return [int(width) for width in bits.split(",")]
    except ValueError:
        raise RecipeError(f"--bits {bits!r} is no list of numbers; write 3,4,5") from None


def table_of(found: "Explanation") -> object:
    """A row for each layer."""
    from rich.table import Table

    table = Table("layer", "shape", "steps", "bytes before", "after", "bits", "format", "kernel", box=None)
    for layer in found.layers:
        steps = "; ".join(
            f"{s.technique} {' '.join(f'{k}={v}' for k, v in s.knobs.items())}".strip() for s in layer.steps
        )
        shape, bits = f"{layer.shape[0]}x{layer.shape[1]}", f"{layer.bits_per_weight:.2f}"
        sizes = f"{layer.bytes_before:,}", f"{layer.bytes_after:,}"
        table.add_row(layer.name, shape, steps or "as it is", *sizes, bits, layer.format, layer.kernel)
    return table


def table_of_splits(found: "Plan", top: int) -> object:
    """A row for each of the best splits."""
    from rich.filesize import decimal
    from rich.table import Table

    serves = "prompt_s" in found.best.notes
    names = ("split", "parts", "step", *(("prompts",) if serves else ()), "tokens/s", "memory", "sent", "bottleneck")
    table = Table(*names, "compute, memory, link, idle", box=None)
    for one in found.ranked[:top]:
        shares = ", ".join(f"{share:.0%}" for share in one.shares.values())
        prompts = (clocked(one.notes["prompt_s"]),) if serves else ()
        rate = one.notes.get("request_tokens_per_s", one.tokens_per_s)
        sizes = decimal(round(one.nbytes)), decimal(round(one.sent))
        row = (str(one.split), str(one.split.parts), clocked(one.seconds), *prompts, f"{rate:,.4g}")
        table.add_row(*row, *sizes, one.bottleneck, shares)
    return table


def clocked(seconds: float) -> str:
    """Seconds, or where it is less than one thousandths of them."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:,.4g} s"
