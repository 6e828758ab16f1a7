"""Quality: what every technique costs, on a language model, an encoder and classifiers, and beside its peers.

    python benchmarks/quality.py [--only language,peers,encoder,vision,cost] [--peer-python PYTHON]
                                 [--llama-source FOLDER --llama-programs FOLDER] [--windows N] [--write docs/quality.md]

Measures the parts that are named (all, if none is), keeps every row in the cache folder, and prints the tables of all
that is known. It needs the shared models and data: the folder that LISSOM_SHARED names, or `shared` beside the
repository. Parts whose models or peers are not there are left out.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import cost
import encoder
import peers
import resnet
import torch
import transformers
import wikilm
from cache import Cache, Task
from page import page
from run import Run

from lissom.hardware import describe

NEEDED = ("models/wikilm", "data/wikitext2/plain", "models/resnet_cifar10", "data/cifar10_lossless", "data/stsb_en")
PARTS = ("language", "peers", "encoder", "vision", "cost")


def main() -> int:
    """Measure what is asked for, print all that is known, and write the page if asked."""
    asked = arguments()
    shared = Path(os.environ.get("LISSOM_SHARED", Path(__file__).parents[2] / "shared"))
    missing = [name for name in NEEDED if not (shared / name).is_dir()]
    if missing:
        print(f"quality: skipped, there is no {missing[0]} in the shared folder; LISSOM_SHARED names another one")
        return 0
    torch.manual_seed(0)
    with TemporaryDirectory() as place:
        run = measured(shared, asked, Path(place))
    text = page(run)
    print(text)
    print(json.dumps(run.as_dict()))
    if asked.write is not None:
        asked.write.write_text(text, encoding="utf-8")
    return 0


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description="What every technique costs in quality.")
    parser.add_argument("--only", type=lambda words: words.split(","), default=PARTS, help="parts to measure")
    parser.add_argument("--table", help="measure only the rows of this table, such as sizes")
    parser.add_argument("--cache", type=Path, default=Path("build/quality"), help="the folder of measured rows")
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    parser.add_argument("--peer-python", metavar="PYTHON", help="an interpreter that has the peers")
    parser.add_argument("--llama-source", type=Path, metavar="FOLDER", help="llama.cpp's source, for its converter")
    parser.add_argument("--llama-programs", type=Path, metavar="FOLDER", help="llama.cpp's programs")
    parser.add_argument("--windows", type=int, default=wikilm.TEST, help="test windows; 0 for all of them")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    asked = parser.parse_args()
    if set(asked.only) - set(PARTS):
        parser.error(f"--only: there are {', '.join(PARTS)}")
    return asked


def measured(shared: Path, asked: argparse.Namespace, place: Path) -> Run:
    """Every row that is known or asked for, each told as it is begun."""
    run = Run(command=command(), threads=torch.get_num_threads(), machine=describe().as_dict(), versions=versions())
    cache = Cache(folder=asked.cache)
    for task in every(shared, asked, place, run):
        wanted = task.part in asked.only and asked.table in (None, task.table)
        run.found += cache.rows([task], measure=wanted and available(task, asked), fresh=asked.fresh)
    return run


def every(shared: Path, asked: argparse.Namespace, place: Path, run: Run) -> Iterator[Task]:
    """The rows of all parts."""
    places = peers.Places(python=asked.peer_python, source=asked.llama_source, programs=asked.llama_programs)
    for part in PARTS:
        (place / part).mkdir()
    language = wikilm.Bench.of(shared, asked.windows or None, place / "language", run.versions)
    yield from wikilm.tasks(language)
    yield from peers.tasks(language, places)
    home = encoder.home()
    if home is not None:
        yield from encoder.tasks(encoder.Bench.of(home, shared / "data" / "stsb_en", place / "encoder"), run.versions)
    yield from resnet.tasks(resnet.Bench.of(shared, place / "vision", places), run.versions)
    yield from cost.tasks(cost.Bench(place=place / "cost", places=places), run.versions)


def available(task: Task, asked: argparse.Namespace) -> bool:
    """Whether the peer of a row was named."""
    if "llama.cpp" in task.name:
        return None not in (asked.peer_python, asked.llama_source, asked.llama_programs)
    others = ("llm-compressor", "AutoRound", "Torch-Pruning")
    return asked.peer_python is not None or not task.name.startswith(others)


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
    return {
        "lissom": own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
