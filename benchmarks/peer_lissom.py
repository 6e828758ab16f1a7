"""lissom's engine, timed as its peers are, in a process that begins as `lissom serve` does.

    python peer_lissom.py FOLDER BATCHES PROMPT NEW CACHE

Prints one JSON line (turns.py); the seconds of a step that reads all prompts and gives each its first token, and of the
steps after it; and the bytes that one of these reads, weights and keys and values, in the middle of them.
"""

import gc
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from turns import time_batches

from lissom.artifact import open_folder
from lissom.resident import settle

if TYPE_CHECKING:
    from lissom.engine import Engine


def main(folder: str, batches: str, prompt: str, new: str, cache: str) -> None:
    """All batches, each by an engine of its own."""
    gc.disable()
    opened = open_folder(folder, bare=True)

    from lissom.engine.bench import engine, once, step_bytes
    from lissom.engine.lower import lower

    settle()
    model: Any = lower(opened.model)

    @lru_cache(maxsize=1)
    def running(size: int) -> "Engine":
        return engine(model, opened.tokenizer, size, int(prompt), int(new), cache=cache)

    running(1)  # which is the first that is asked
    gc.freeze()
    gc.enable()
    settle()

    def timed(size: int, more: int) -> list[float]:
        seconds = once(running(size), size, int(prompt), more)
        context = size * (int(prompt) + more / 2)
        return [*seconds, step_bytes(model) + context * running(size).token_bytes]

    time_batches(timed, batches, int(new))


main(*sys.argv[1:])
