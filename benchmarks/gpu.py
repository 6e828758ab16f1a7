"""GPUs: the layers of a Llama 3.1 8B and a whole step of it in every form that has a kernel, beside bfloat16.

    python benchmarks/gpu.py [--seconds 420] [--blocks 32] [--write FILE] [--interpret | --compiled]

Limits first: reading memory, and products of square matrices in bfloat16, int8 and float8, by PyTorch's own. Then each
shape of layer, for 1 to 2048 rows, in each form: all forms by turns, each a CUDA graph of as many layers with weights
of their own as no cache holds. GB/s are those of the stored weight, TOP/s those of the product, each with its share of
the limit; the first bounds few rows, the second many. Then a step of the model in the engine, a token for each of 1 and
of 16 sequences behind 512 others, recorded and not, and beside them transformers' own code in bfloat16, as it is and
compiled. What there is no time for is named. The numbers of weights are drawn: they tell nothing of quality. Prints
tables, then one JSON line.

With --interpret, on a CPU, tiny sizes in Triton's interpreter: each form beside its definition, and no times. With
--compiled, on any machine, what the assembler of GPUs says of all kernels that would be tried: no times either.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports a kernel

import torch
from gpu_forms import FORMS, layer_of, layers_of, read_bytes, whole_model
from gpu_steps import StepTimes, step_times
from table import markdown

from lissom.estimate import Estimate, median_estimate
from lissom.formats import kernel_of
from lissom.formats.gpu import operators
from lissom.hardware import describe, rounds_ms
from lissom.hardware.compiled import AMPERE, HOPPER, Compiled, compiled

SHAPES = {"k, v": (1024, 4096), "q, o": (4096, 4096), "gate, up": (14336, 4096), "down": (4096, 14336)}
ROWS = (1, 4, 16, 64, 256, 2048)
BEYOND = 2**28  # bytes of weights that no cache holds
READ, SQUARE = 2**32, 8192
ROUNDS = 8


def refuse(message: str) -> None:
    """Say in one line what is missing, and end."""
    print(f"gpu: {message}", file=sys.stderr)
    raise SystemExit(2)


def played(run: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def times(runs: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, Estimate]:
    """The median milliseconds of each, by turns."""
    found = rounds_ms(runs, rounds=rounds, target="cuda")
    return {name: median_estimate(spent, unit="ms") for name, spent in found.items()}


def limits() -> dict[str, float]:
    """GB/s and TOP/s that this GPU reaches on the simplest work."""
    x = torch.ones(READ // 4, device="cuda")
    a, b = (torch.randn(SQUARE, SQUARE, device="cuda") for _ in range(2))
    half, whole = [m.bfloat16() for m in (a, b)], [(m * 30).to(torch.int8) for m in (a, b)]
    runs: dict[str, Callable[[], object]] = {
        "read": lambda: torch.dot(x, x),
        "bf16": lambda: half[0] @ half[1].T,
        "int8": lambda: torch._int_mm(whole[0], whole[1].T),
    }
    if torch.cuda.get_device_capability() >= (8, 9):
        small, one = [m.to(torch.float8_e4m3fn) for m in (a, b)], torch.ones((), device="cuda")
        runs["float8"] = lambda: torch._scaled_mm(
            small[0], small[1].T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )
    spent = {name: estimate.value for name, estimate in times(runs).items()}
    amounts = {name: READ / 1e6 if name == "read" else 2 * SQUARE**3 / 1e9 for name in runs}
    return {name: amounts[name] / ms for name, ms in spent.items()}


def layer_rows(until: float) -> Iterator[dict[str, Any]]:
    """Each shape with each number of rows, in every form; as many as there is time for."""
    for shape, (o, i) in SHAPES.items():
        forms = {name: layers_of(name, o, i, BEYOND) for name in FORMS}
        compiled = [torch.compile(layer) for layer in forms["bf16"]]
        for rows in ROWS:
            if time.monotonic() > until:
                yield {"shape": shape, "rows": rows, "left out": "no time"}
                continue
            yield from timed(shape, rows, (o, i), {**forms, "bf16, compiled": compiled})
        del forms, compiled
        torch.cuda.empty_cache()


def timed(shape: str, rows: int, size: tuple[int, int], forms: dict[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """One shape and number of rows in all forms, by turns."""
    x = torch.randn(rows, size[1], device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        graphs = {name: played(lambda own=own: [layer(x) for layer in own]) for name, own in forms.items()}
    found = times(graphs)
    for name, spent in found.items():
        own, each = forms[name], spent.value / len(forms[name])
        yield {
            "shape": shape,
            "rows": rows,
            "form": name,
            "us": 1000 * each,
            "of bf16": found["bf16"].value / len(forms["bf16"]) / each,
            "GB/s": read_bytes(own[0]) / each / 1e6,
            "TOP/s": 2 * rows * size[0] * size[1] / each / 1e9,
        }


def interpret() -> None:
    """Let the operators do on a CPU what they do on a GPU."""
    for name in ("affine", "binary", "dynamic", "floats", "narrow", "palette"):
        own = getattr(operators, name)
        getattr(operators, f"{name}_linear").register_kernel("cpu")(own)


def agreement(device: str, sizes: Sequence[tuple[int, int]], rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Each form beside the product with its dense matrix in double precision: the largest difference, as a share."""
    for (o, i), form, n in itertools.product(sizes, FORMS, rows):
        weight = FORMS[form](o, i, device)
        layer, x = layer_of(weight, device), torch.randn(n, i, device=device, dtype=torch.bfloat16)
        with torch.no_grad():
            wanted = weight.activate(x).double() @ weight.dense().double().T
            share = ((layer(x).double() - wanted).abs().max() / wanted.abs().max()).item()
        yield {"form": form, "shape": f"{o}x{i}", "rows": n, "kernel": kernel_of(weight), "off by": share}


def agreeing(device: str, sizes: Sequence[tuple[int, int]], rows: Sequence[int]) -> list[dict[str, Any]]:
    """The same, printed."""
    found = list(agreement(device, sizes, rows))
    print(*markdown(list(found[0]), [[str(value) for value in row.values()] for row in found]), sep="\n", flush=True)
    return found


def assembled(rows: int) -> list[dict[str, Any]]:
    """What the assembler says of each form, from the least to the most of all that is tried; printed."""
    found = []
    for name, capability in (("Ampere", AMPERE), ("Hopper", HOPPER)):
        of_form: dict[str, list[Compiled]] = {}
        for one in compiled(capability, rows=rows):
            of_form.setdefault(one.form, []).append(one)
        for form, tried in of_form.items():
            spans = {
                figure: f"{min(values)} to {max(values)}"
                for figure in ("registers", "spilled_bytes", "shared_bytes")
                for values in [[getattr(one, figure) for one in tried]]
            }
            units = ", ".join(sorted({one.units for one in tried}))
            found.append({"GPU": name, "form": form, "tried": len(tried), **spans, "units": units})
    print(*markdown(list(found[0]), [[str(value) for value in row.values()] for row in found]), sep="\n", flush=True)
    return found


def table(rows: Sequence[dict[str, Any]], bound: dict[str, float]) -> list[str]:
    """The layers as Markdown."""
    head = ["shape", "rows", "form", "µs", "times as fast as bf16", "GB/s", "TOP/s"]
    body = []
    for row in rows:
        if "form" not in row:
            body.append([row["shape"], str(row["rows"]), row["left out"], "", "", "", ""])
            continue
        share, fast = row["GB/s"] / bound["read"], row["TOP/s"] / bound["bf16"]
        rates = [f"{row['GB/s']:.0f} ({share:.0%})", f"{row['TOP/s']:.1f} ({fast:.0%} of bf16)"]
        body.append([row["shape"], str(row["rows"]), row["form"], f"{row['us']:.1f}", f"{row['of bf16']:.2f}", *rates])
    return markdown(head, body)


def step_table(found: Sequence[StepTimes]) -> list[str]:
    """The steps as Markdown."""
    head = ["form", "way", "sequences", "ms a step", "tokens/s"]
    body = [
        [s.form, s.way, str(s.sequences), f"{s.ms.value:.2f}", f"{1000 * s.sequences / s.ms.value:.0f}"] for s in found
    ]
    return markdown(head, body)


def on_gpu(seconds: float, blocks: int) -> dict[str, Any]:
    """Everything, within about so many seconds."""
    begun = time.monotonic()
    bound = limits()
    print(", ".join(f"{name} {rate:.0f} {'GB/s' if name == 'read' else 'TOP/s'}" for name, rate in bound.items()))
    same = agreeing("cuda", [(4096, 4096), (1000, 4104)], (1, 5, 300))
    steps = list(step_times(lambda form: whole_model(form, blocks), begun + 0.5 * seconds))
    print(*step_table(steps), sep="\n", flush=True)
    layers = list(layer_rows(begun + seconds))
    print(*table(layers, bound), sep="\n", flush=True)
    told = [{"form": s.form, "way": s.way, "sequences": s.sequences, "ms": s.ms.value} for s in steps]
    return {"limits": bound, "agreement": same, "layers": layers, "steps": told, "seconds": time.monotonic() - begun}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    if not operators.triton_there():
        refuse("needs Triton, which is not installed; pip install lissom[cuda]")
    if not (given.interpret or given.compiled or torch.cuda.is_available()):
        refuse("needs a GPU that PyTorch can use, and there is none; try --interpret or --compiled on a CPU")
    torch.manual_seed(0)
    if given.interpret:
        interpret()
        found: dict[str, Any] = {"agreement": agreeing("cpu", [(40, 96), (32, 128)], (1, 3))}
    elif given.compiled:
        found = {"compiled": assembled(16)}
    else:
        found = on_gpu(given.seconds, given.blocks)
    told = {"benchmark": "gpu", "machine": describe().as_dict(), "torch": torch.__version__, **found}
    if given.write:
        given.write.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
