"""One request to the engine of a folder, in a process of its own as it is served: when it is up, and what it takes."""

import random
import time
from contextlib import ExitStack, closing
from pathlib import Path

from lissom.engine.link import Link, said_of
from lissom.engine.pages import PAGE
from lissom.engine.sequence import Sampling
from lissom.errors import DataError, ModelError
from lissom.server.hosts import InProcess
from lissom.server.service import FolderService


def trial(folder: str | Path, prompt: int, new: int) -> dict[str, int | None]:
    """Milliseconds until the engine of a language model could be asked, and bytes of its process after one answer.

    Args:
        folder: of the model, or its name on the hub.
        prompt: tokens that are read; random ones.
        new: tokens that are written.

    Returns:
        `load_ms`, and `resident_bytes`, which is None where the system does not say it.

    Raises:
        LissomError: there is no language model in it, or none that has room for so many tokens.
    """
    begun = time.perf_counter()
    room = prompt + new + 2 * PAGE
    host = InProcess(
        FolderService(folder=folder, name="trial", uncertified=True, speculate="off", max_tokens_in_cache=room)
    )
    with ExitStack() as at_last:
        at_last.callback(host.close)
        end, greeting = host.open()
        loaded = time.perf_counter() - begun
        link = at_last.enter_context(closing(Link(end)))
        tokens = [random.randrange(greeting["vocabulary"]) for _ in range(prompt)]
        sampling = said_of(Sampling(temperature=0, max_tokens=new, ignore_eos=True))
        link.send({"begin": 0, "prompts": [tokens], "samplings": [sampling], "owner": "", "priority": 0})
        while not answered(link):
            pass
        return {"load_ms": round(1000 * loaded), "resident_bytes": host.memory()}


def answered(link: Link) -> bool:
    """Whether the answer is complete with the next frame.

    Raises:
        DataError: it has been refused.
        ModelError: the process has ended.
    """
    frame = link.receive()
    if frame is None:
        raise ModelError("bench: the process of the engine ended; what it wrote says why")
    said, _ = frame
    if said["refused"]:
        raise DataError(said["refused"][0][1])
    return any(news["finish"] for news in said["news"])
