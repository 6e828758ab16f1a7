"""Parity: what lissom hands over, in the runtime that it was made for, beside what was certified.

    python benchmarks/targets.py WORK [--python RUNTIME=PYTHON ...] [--llama BIN] [--only digits,wikilm,resnet20,minilm]
                                 [--title int8 ...] [--to vllm,tpu] [--write FILE]

Each artifact is written for each runtime that takes such a model, opened there in a process of its own, and runs on the
same examples as lissom's: the largest difference of two outputs, KL divergence where they are logits, the metric
measured again, bytes, and milliseconds of a batch, by turns with those of lissom's own engine. An export that needs
packages that are not here is written in the interpreter of its runtime. What is refused or fails is a row that says
why. Prints the tables, then one JSON line. It needs the shared models and data: the folder that LISSOM_SHARED names, or
`shared` beside the repository.
"""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from artifacts import MODELS, PLACES, cases
from parity import RUNTIMES, Places, Row, measured
from table import markdown
from turns import failure

from lissom.export.targets import TARGETS
from lissom.hardware import describe

HERE = Path(__file__).parent
COLUMNS = {  # what they are called, and how their numbers are written
    "artifact": ("artifact", ""),
    "to": ("to", ""),
    "runtime": ("runtime", ""),
    "changed": ("layers changed", ""),
    "bytes": ("bytes", ",d"),
    "apart": ("apart at most", ".2g"),
    "kl": ("KL, nats", ".2g"),
    "metric": ("metric", ""),
    "own": ("lissom", ".4f"),
    "there": ("there", ".4f"),
    "own_ms": ("lissom, ms", ".1f"),
    "ms": ("there, ms", ".1f"),
    "note": ("note", ""),
}


def rows_of(name: str, titles: list[str] | None, exports: list[str], places: Places) -> Iterator[Row]:
    """The rows of a model; or of why there are none, or no more."""
    try:
        for case in cases(name, places.work, places.shared):
            if titles is None or case.title in titles:
                yield from measured(case, [to for to in case.to if to in exports], places)
    except (Exception, SystemExit) as error:  # a model whose files or packages are not here
        yield {"artifact": "none", "to": "", "runtime": "", "metric": "", "note": failure(error)}


def line(row: Row) -> list[str]:
    """One row of a table."""
    shown = {**row, "changed": f"{row['changed']} of {row['layers']}" if "layers" in row else ""}
    return [cell(shown.get(name), form) for name, (_, form) in COLUMNS.items()]


def cell(value: Any, form: str) -> str:
    """A number as its column has them, "-" where there is none; words, with nothing that a table takes for its own."""
    if form:
        return "-" if value is None or not math.isfinite(value) else format(value, form)
    return str(value or "").replace("|", "/").replace("\n", " ")


def finite(found: Any) -> Any:
    """What was found as JSON holds it."""
    if isinstance(found, Mapping):
        return {name: finite(value) for name, value in found.items()}
    if isinstance(found, list):
        return [finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def page(found: Mapping[str, list[Row]], command: str) -> str:
    """The tables, and what measured."""
    text = [
        "# Handed over: the same model in other runtimes",
        "",
        "Written from what the command below printed. Each artifact was written by `lissom export` for every runtime",
        "that takes such a model, opened by the runtime's own package in another process, and run on the same",
        "examples. A layer is changed where the runtime holds no such form. `apart` is the largest difference of two",
        "outputs (of log-probabilities, where they are logits). Milliseconds are of a batch of 16 examples, or of 8",
        "windows of a text, by turns with lissom's engine on the same batch. llama.cpp, vLLM and the program for TPUs",
        f"are asked for the first {PLACES} places of a window, where the others read all 512; llama.cpp and vLLM are",
        "timed as they read the windows and write a token behind each. llama.cpp rounds what comes into a product to 8",
        "bits. The bytes of a circuit are those of its weights.",
        "",
        f"```text\n{command}\n```",
        "",
    ]
    heads = [head for head, _ in COLUMNS.values()]
    for name, rows in found.items():
        text += [f"## {name}", "", *markdown(heads, [line(row) for row in rows]), ""]
    facts = {**describe().as_dict(), "threads": torch.get_num_threads()}
    return "\n".join([*text, "## Machine", "", *(f"- {name}: {value}" for name, value in facts.items())])


def listed(words: str) -> list[str]:
    """Words between commas."""
    return words.split(",")


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a folder for what is made")
    parser.add_argument("--only", type=listed, default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--title", action="append", metavar="ARTIFACT", help="of each model; all, where none is given")
    parser.add_argument("--to", type=listed, default=list(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--python", type=pair, action="append", default=[], metavar="RUNTIME=PYTHON", help=PYTHON)
    parser.add_argument("--llama", type=Path, metavar="BIN", help="the folder of llama.cpp's programs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    asked = parser.parse_args()
    for option, possible in (("only", MODELS), ("to", TARGETS), ("python", RUNTIMES.values())):
        known("--" + option, [word[0] if option == "python" else word for word in getattr(asked, option)], possible)
    return asked


PYTHON = f"an interpreter that has a runtime, of {', '.join(RUNTIMES.values())}"


def pair(word: str) -> tuple[str, str]:
    """A runtime and its interpreter."""
    runtime, _, python = word.partition("=")
    return runtime, python


def known(option: str, words: Iterable[str], possible: Iterable[str]) -> None:
    """See that there are such.

    Raises:
        SystemExit: there is one that is not.
    """
    if unknown := sorted(set(words) - set(possible)):
        raise SystemExit(f"{option}: there is no {unknown[0]!r}; there are {', '.join(possible)}")


def main() -> None:
    """Measure, print, and write the page if asked."""
    asked = arguments()
    torch.manual_seed(0)
    asked.work.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ.get("LISSOM_SHARED", HERE.parents[1] / "shared"))
    where = {"work": asked.work.resolve(), "shared": shared.resolve()}
    places = Places(**where, pythons=dict(asked.python), llama=asked.llama)
    found = {name: list(rows_of(name, asked.title, asked.to, places)) for name in asked.only}
    words = [re.sub(r"(^|=)[^=]*/", r"\1…/", word) for word in sys.argv[1:]]
    text = page(found, " ".join(["python benchmarks/targets.py", *words]))
    print(text)
    print(json.dumps({"benchmark": "targets", "found": finite(found)}))
    if asked.write is not None:
        asked.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
