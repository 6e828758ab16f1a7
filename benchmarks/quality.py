"""Quality: what every technique costs, on a language model and on a classifier, and beside llm-compressor.

    python benchmarks/quality.py [--peer-python PYTHON] [--windows N] [--write docs/quality.md]

Prints the tables, then one line of JSON. It needs the shared models and data: the folder that LISSOM_SHARED names, or
`shared` beside the repository.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import resnet
import torch
import transformers
import wikilm
from page import Run, language, page, parity, vision
from table import Row

from lissom.hardware import describe

NEEDED = ("models/wikilm", "data/wikitext2/plain", "models/resnet_cifar10", "data/cifar10_lossless")


def main() -> int:
    """Measure everything, print it, and write the page if asked."""
    asked = arguments()
    shared = Path(os.environ.get("LISSOM_SHARED", Path(__file__).parents[2] / "shared"))
    missing = [name for name in NEEDED if not (shared / name).is_dir()]
    if missing:
        print(f"quality: skipped, there is no {missing[0]} in the shared folder; LISSOM_SHARED names another one")
        return 0
    torch.manual_seed(0)
    run = measured(shared, asked)
    print("\n".join([*language(run), "", *parity(run.parities), "", *vision(run.vision), ""]))
    print(json.dumps(as_dict(run)))
    if asked.write is not None:
        asked.write.write_text(page(run), encoding="utf-8")
    return 0


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="What every technique costs in quality.")
    parser.add_argument("--peer-python", metavar="PYTHON", help="an interpreter that has llm-compressor")
    parser.add_argument("--windows", type=int, default=wikilm.TEST, help="test windows; 0 for all of them")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    return parser.parse_args()


def measured(shared: Path, asked: argparse.Namespace) -> Run:
    """Every row, told as it is done."""
    run = Run(command=command(), threads=torch.get_num_threads(), machine=describe().as_dict(), versions=versions())
    with TemporaryDirectory() as place:
        (Path(place) / "vision").mkdir()
        run.vision = told(resnet.rows(shared, Path(place) / "vision"))
        bench = wikilm.Bench.of(shared, asked.windows or None, Path(place))
        run.language = told(wikilm.rows(bench))
        run.parities = list(wikilm.parities(bench))
        if asked.peer_python:
            for ranges in wikilm.OBSERVERS:
                row, others = wikilm.peer_row(bench, asked.peer_python, ranges)
                run.peers.append(row)
                run.versions |= others
    return run


def told(rows: Iterable[Row]) -> list[Row]:
    """The rows, each named on standard error when it is there."""
    done = []
    for row in rows:
        print(f"{row.name}: {row.figures.compressed}, {row.bits:.2f} bits", file=sys.stderr, flush=True)
        done.append(row)
    return done


def command() -> str:
    """The command line, with the places of this machine left out."""
    shown = [f"…/{Path(word).name}" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    threads = os.environ.get("OMP_NUM_THREADS")
    return " ".join([*([f"OMP_NUM_THREADS={threads}"] if threads else []), "python benchmarks/quality.py", *shown])


def versions() -> dict[str, str]:
    """What measured."""
    try:
        own = version("lissom")
    except PackageNotFoundError:
        own = "from its sources"
    return {"lissom": own, "python": platform.python_version(), "transformers": transformers.__version__}


def as_dict(run: Run) -> dict[str, object]:
    """The run for JSON."""
    rows = [*run.language, *run.peers]
    return {
        "benchmark": "quality",
        "command": run.command,
        "threads": run.threads,
        "machine": run.machine,
        "versions": run.versions,
        "language": [row.as_dict() for row in rows],
        "beside_peers": {peer.name: asdict(run.beside(peer)) for peer in run.peers},
        "parity": [asdict(found) for found in run.parities],
        "vision": [row.as_dict() for row in run.vision],
    }


if __name__ == "__main__":
    sys.exit(main())
