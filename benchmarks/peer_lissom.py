"""lissom's engine, timed as its peers are, in a process that begins as `lissom serve` does.

    python peer_lissom.py FOLDER BATCHES PROMPT NEW CACHE

Prints one JSON line (turns.py); the seconds of a step that reads all prompts and gives each its first token, and of the
steps after it; and the bytes of keys and values that one of these reads, in the middle of them.
"""

import gc
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from turns import time_batches

from lissom.engine.build import build, empty
from lissom.engine.engine import Engine
from lissom.engine.image import read
from lissom.engine.pages import PAGE, pages_for
from lissom.engine.turn import once
from lissom.models.tokenizer import Tokenizer
from lissom.resident import settle


def main(folder: str, batches: str, prompt: str, new: str, cache: str) -> None:
    """All batches, each by an engine of its own, with pages for the largest."""
    gc.disable()
    most = max(map(int, batches.split(",")))
    pages = pages_for(most * (int(prompt) + int(new) + 2 * PAGE))
    (file,) = empty(1)
    if build([folder], [file], cache=cache, pages=pages, uncertified=True):
        model, told = read(file)
        tokenizer: Any = Tokenizer.read(Path(folder), told["tokenizer"])
    else:
        model, tokenizer = with_torch(folder)

    @lru_cache(maxsize=1)
    def running(size: int) -> Engine:
        how: dict[str, Any] = {"max_tokens_in_cache": pages * PAGE, "max_batch": size, "cache": cache}
        return Engine(model, tokenizer, prefill_chunk=size * int(prompt), speculate="off", **how)

    running(1)  # which is the first that is asked
    gc.freeze()
    gc.enable()
    settle()

    def timed(size: int, more: int) -> list[float]:
        seconds = once(running(size), size, int(prompt), more)
        return [*seconds, size * (int(prompt) + more / 2) * running(size).token_bytes]

    time_batches(timed, batches, int(new))


def with_torch(folder: str) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder that needs PyTorch."""
    from lissom.artifact import open_folder

    opened = open_folder(folder, bare=True)

    from lissom.engine.lower import lower

    settle()
    return lower(opened.model), opened.tokenizer


main(*sys.argv[1:])
