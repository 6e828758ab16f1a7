"""Verbs that tell what could be done: the techniques there are, and what a recipe would make of a model."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from lissom.cli.options import Json, Length, Model
from lissom.cli.read import read_recipe, text_windows
from lissom.cli.read import size as read_size
from lissom.cli.show import console
from lissom.cli.working import working
from lissom.errors import RecipeError, meant

if TYPE_CHECKING:
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
    recipe: Annotated[Path, typer.Argument(help="recipe.yaml")],
    model: Model,
    json_lines: Json = False,
) -> None:
    """Say what a recipe would do to each layer: steps, bytes before and after, and the kernel that would run it."""
    from lissom.search.explain import explain as foresee

    found = foresee(model, read_recipe(recipe))
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
