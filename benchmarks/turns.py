"""Taking turns: what several processes time a little at a time, on the same inputs, sees the same minutes."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

TURN_S = 0.3
PATIENCE_S = 10  # with a process that is to end

Arrays = list[np.ndarray]


class Ended(SystemExit):
    """What was asked has ended without an answer."""


class Peer:
    """A script of this folder in another process, run by an interpreter that has what it needs: asked, it answers.

    The script gets the words, the folder among them, and then the number of the descriptor that its answers go to; what
    its tools say on the way is in `peer.log` in the folder. `versions` is what it says first.
    """

    def __init__(self, python: Path | str, script: str, folder: Path, *words: Any) -> None:
        answers, pipe = os.pipe()  # the tools talk on the standard output
        command = [str(word) for word in (python, Path(__file__).with_name(script), folder, *words, pipe)]
        environment = {**os.environ, "PYTHONPATH": ""}
        self.log = folder / "peer.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[pipe], text=True
            )
        os.close(pipe)
        self.answers = os.fdopen(answers)
        self.versions: dict[str, str] = self.answer()

    def ask(self, *words: Any) -> Any:
        """The answer to a question."""
        assert self.process.stdin is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """The next line."""
        line = self.answers.readline()
        if not line:
            said = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise Ended(f"{self.process.args[1]} failed with status {self.process.wait()}:\n{said}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *what: object) -> None:
        """There are no more questions; what does not end by itself then is ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.answers.close()


def answer_all(pipe: str, versions: dict[str, str], answer: Callable[..., Any]) -> None:
    """What the script of a `Peer` does: it says its versions, then answers until there is no more question."""
    with os.fdopen(int(pipe), "w") as answers:
        print(json.dumps(versions), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(*json.loads(line))), file=answers, flush=True)


def failure(error: BaseException) -> str:
    """An error in one line: its kind, and the last of what it says."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {said[-1] if said else 'it says nothing'}"[:300]


def turn(run: Callable[[], object]) -> float:
    """The median time in ms of one call, of as many as fit in a turn, after one that is not counted."""
    run()
    begun, times = time.perf_counter(), list[float]()
    while not times or time.perf_counter() - begun < TURN_S:
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def batches(file: Path, size: int) -> Iterator[Arrays]:
    """The arrays of a file, cut into batches."""
    with np.load(file) as held:
        arrays = [held[name] for name in held.files]
    for start in range(0, len(arrays[0]) - size + 1, size):
        yield [array[start : start + size] for array in arrays]


def time_batches(once: Callable[[int, int], Sequence[float]], batches: str, new: int) -> None:
    """Print one JSON line: for each number of sequences what `once` tells, the seconds of reading their prompts and of
    writing `new` tokens more of each before all, after a call of one token that is not counted; the seconds from the
    start of this process to the first token of one sequence ("first"); and the peak of its memory in bytes."""
    once(1, 1)
    found: dict[str, object] = {"first": age()}
    for size in map(int, batches.split(",")):
        once(size, 1)
        found[str(size)] = once(size, new)
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found))


def age() -> float:
    """Seconds since this process began, with all that it imported."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
