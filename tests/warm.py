"""A process that has imported what programs of the tests need, and does each of them in a copy of itself.

To start Python and to import PyTorch and transformers takes seconds, and most of these programs take less. A line of
JSON asks for some at once: {"words", "environment", "folder", "out", "error", "seconds"} of each, where the first word
is a file or a module; a line tells what they ended with.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

NEEDED = (
    "torch.distributed.tensor",
    "torch.optim.swa_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "lissom.cli",
    "lissom.export",
    "lissom.plan",
    "lissom.recover",
    "lissom.recover.parallel.laid",
    "lissom.report",
    "lissom.search",
)
PATIENCE_S = 600.0  # what takes longer hangs
WRITE = os.O_WRONLY | os.O_CREAT
Done = subprocess.CompletedProcess[str]


class Warm:
    """That process, and what it is asked for; `place` is a folder for what the programs print."""

    def __init__(self, root: Path, place: Path) -> None:
        self._place, self._count = place, 0
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *words: object, seconds: float = PATIENCE_S) -> Done:
        """A program in the present folder, which is stopped after so many seconds, as if it were killed."""
        return self.together(words, [{}], seconds)[0]

    def together(
        self, words: Sequence[object], environments: Sequence[Mapping[str, str]], seconds: float = PATIENCE_S
    ) -> list[Done]:
        """A program several times at once, with each of these environments more."""
        runs, asked = list[Done](), list[Any]()
        for more in environments:
            self._count += 1
            out, error = (str(self._place / f"{self._count}.{kind}") for kind in ("out", "error"))
            runs.append(Done([*map(str, words)], 0, out, error))
            told = {"folder": os.getcwd(), "environment": {**os.environ, **more}, "out": out, "error": error}
            asked.append({"words": runs[-1].args, "seconds": seconds, **told})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        return [
            Done(run.args, code, *map(read, (run.stdout, run.stderr))) for run, code in zip(runs, codes, strict=True)
        ]

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


def read(file: str) -> str:
    """What was printed to a file."""
    return Path(file).read_text(encoding="utf-8")


def workers(count: int, port: int) -> list[dict[str, str]]:
    """What torchrun tells so many workers that it starts on this machine."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    return [{**shared, "MASTER_PORT": str(port), "RANK": str(own), "LOCAL_RANK": str(own)} for own in range(count)]


def become(run: Mapping[str, Any]) -> None:
    """Be a program from here on."""
    for number, file, how in ((0, os.devnull, os.O_RDONLY), (1, run["out"], WRITE), (2, run["error"], WRITE)):
        os.dup2(os.open(file, how, 0o600), number)
    signal.setitimer(signal.ITIMER_REAL, run["seconds"])  # nobody handles the signal, and so the process ends
    os.chdir(run["folder"])
    os.environ.clear()
    os.environ.update(run["environment"])
    sys.argv = run["words"]
    program: Callable[..., Any] = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
    program(sys.argv[0], run_name="__main__")


def main() -> None:
    """Do what each line asks."""
    for line in sys.stdin:
        processes = list[int]()
        for run in json.loads(line):
            if (process := os.fork()) == 0:
                become(run)
                return
            processes.append(process)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]), flush=True)


if __name__ == "__main__":
    del sys.path[0]  # whose folders have the names of packages
    for name in NEEDED:
        __import__(name)
    main()
