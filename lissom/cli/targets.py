"""The targets, printed: all of them, with this machine; or one, with the speed of each form of a layer."""

from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lissom.cli.show import console, show

if TYPE_CHECKING:
    from lissom.hardware import Target
    from lissom.hardware.ways import Kind
    from lissom.search.speeds import FormSpeed


def every(json_lines: bool) -> None:
    """This machine, its limits, and all targets."""
    from lissom.hardware import describe, limits, targets
    from lissom.hardware.ways import KINDS, as_dict

    here = targets()
    told = [{**as_dict(kind), "here": kind.name in here, "times": times_of(kind)} for kind in KINDS.values()]
    more: dict[str, Any] = {"targets": told} if json_lines else {}
    show(limits().as_dict(), json_lines, {**describe().as_dict(), **more})
    for kind in () if json_lines else KINDS.values():
        plain(f"\n{kind.name:24} {times_of(kind)}")
        for line in ways_of(kind):
            plain(f"  {line}")


def one(name: str, json_lines: bool) -> None:
    """A target: what is assumed of it, its formats, and each form of a layer."""
    from lissom.hardware import target_named
    from lissom.hardware.ways import KINDS, as_dict
    from lissom.search.speeds import speeds

    target = target_named(name)
    kind, found = KINDS[target.kind], speeds(target)
    if json_lines:
        forms = [{**asdict(form), "latency": form.latency and told(form)} for form in found]
        print(dumps({"target": str(target), "times": target.how, **facts(target), **as_dict(kind), "forms": forms}))
        return
    plain(f"{target}: times are {target.how}{'' if target.measured else ', not measured'}")
    for fact, value in facts(target).items():
        plain(f"  {fact.replace('_', ' '):24} {value}")
    for line in ways_of(kind):
        plain(f"  {line}")
    console.print(table_of(found, target))


def times_of(kind: "Kind") -> str:
    """Where times come from: measured if it is here, else costed, of devices that are named."""
    from lissom.hardware import targets

    devices = ", ".join(f"{kind.name}:{device}" for device in kind.devices)
    if kind.name in targets():
        return "measured here" + (f"; others are {kind.told}: {devices}" if devices else "")
    return f"not here; {kind.told}, not measured: {devices}"


def ways_of(kind: "Kind") -> list[str]:
    """The formats in words, a line for each way."""
    lines = [f"{way.whose}: {way.told}" for way in kind.ways]
    return [*lines, *([f"refused: {kind.refuses}"] if kind.refuses else [])]


def facts(target: "Target") -> dict[str, Any]:
    """What costs are computed from; nothing of what is measured."""
    from lissom.export.fpga.alone import BITS, CLOCK_NS, PARTS
    from lissom.hardware.roofline import assumed
    from lissom.hardware.sheets import SHEETS

    if target.measured:
        return {}
    if target.kind == "fpga":
        return {**asdict(PARTS[target.device]), "assumed": f"{BITS} bits between layers, a clock of {CLOCK_NS:g} ns"}
    sheet = SHEETS[target.device if target.kind == "cuda" else f"tpu-{target.device}"]
    rates = {f"{kind}_tera": rate / 1e12 for kind, rate in sheet.rates.items()}
    return {**rates, "memory_gb": sheet.memory / 1e9, "read_gb_per_s": sheet.read / 1e9, "assumed": assumed()}


def told(form: "FormSpeed") -> Any:
    """A latency as JSON holds it: an estimate where it was measured, else a number."""
    from lissom.files import plain as as_json

    return as_json(form.latency)


def table_of(found: "list[FormSpeed]", target: "Target") -> Table:
    """A row for each form, beside the layer as it is."""
    table = Table("form", "bits", box=None, pad_edge=False, header_style="dim")
    table.add_column("ms" if target.measured else "ms, costed", justify="right")
    table.add_column("times as fast", justify="right")
    circuit = any(form.area is not None for form in found)
    if circuit:
        table.add_column("of the chip", justify="right")
    table.add_column("runs as")
    first = found[0].ms
    for form in found:
        ms = "" if form.ms is None else f"{form.ms:.3g}"
        faster = "" if form.ms is None or first is None else f"{first / form.ms:.2f}"
        area = [f"{form.area:.2%}" if form.area is not None else ""] if circuit else []
        table.add_row(form.form, f"{form.bits:.2f}", ms, faster, *area, form.refused or form.kernel)
    return table


def plain(line: str) -> None:
    """Print a line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
