"""The engine as a contestant of engine.py: a process that loads a folder, reads prompts and writes on.

    python contestant.py FOLDER BATCHES PROMPT NEW

Prints one JSON line: for each batch the seconds of the step that reads all prompts, and of the steps after it that
write `new` tokens of each; the seconds from the start of this process to the first token of a first prompt; and the
peak of its memory.
"""

import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from lissom.artifact import open_folder


def main(folder: str, batches: str, prompt: str, new: str) -> None:
    """All batches, each after a warming one; begun as `lissom serve` begins."""
    gc.disable()
    opened = open_folder(folder, bare=True)

    from lissom.engine.bench import engine, once
    from lissom.engine.kernels import lower

    model: Any = lower(opened.model)
    gc.freeze()
    gc.enable()
    once(engine(model, opened.tokenizer, 1, int(prompt), 1), 1, int(prompt), 1)
    found: dict[str, object] = {"first": time.clock_gettime(time.CLOCK_BOOTTIME) - started()}
    for size in map(int, batches.split(",")):
        running = engine(model, opened.tokenizer, size, int(prompt), int(new))
        once(running, size, int(prompt), 1)  # its memory is there then
        found[str(size)] = once(running, size, int(prompt), int(new))
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found))


def started() -> float:
    """When this process began, in seconds after the machine did."""
    return int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / 100


if __name__ == "__main__":
    main(*sys.argv[1:])
