"""A process for the model of a folder: `python -m lissom.engine.process FD`, with one end of a link as a descriptor.

The first frame in says what to open; the first one out is a greeting, or the error that kept it from being opened.
"""

import gc
import os
import socket
import sys
from functools import partial
from typing import Any

from lissom.engine.link import Link
from lissom.engine.logs import TOLD, begin
from lissom.errors import ArtifactError, DataError, LissomError
from lissom.resident import settle


def main(descriptor: str) -> None:
    """Serve a folder over the socket of that descriptor, until its other end has gone."""
    link = Link(socket.socket(fileno=int(descriptor)))
    if kind := os.environ.get(TOLD):
        begin(kind)
    asked = link.receive()
    if asked is None:
        return
    gc.disable()
    try:
        host, greeting = opened(link, **asked[0])
    except LissomError as error:
        link.send({"error": type(error).__name__, "message": str(error)})
        return
    gc.freeze()  # what has been loaded stays: to look through it for garbage would take a fifth of a second
    gc.enable()
    settle()
    link.send(greeting)
    host.run()


def opened(link: Link, folder: str, *, target: str, uncertified: bool, **how: Any) -> tuple[Any, dict[str, Any]]:
    """What runs the model of a folder, and its greeting.

    Raises:
        LissomError: there is no model in the folder, none that can be served, or one whose certificate does not hold.
    """
    from lissom.artifact import objection, open_folder

    found = open_folder(folder, bare=target == "cpu")  # first, since it checks the files while PyTorch is imported

    from lissom.engine.lower import lower, placed
    from lissom.hardware.target import check_target

    fault = objection(found.manifest.get("certificate"))
    if fault and not uncertified:
        raise ArtifactError(f"{folder} is not served: {fault}; choose another, or serve it all the same: --uncertified")
    place = check_target(target)
    settle()  # all that was needed once, to import, goes before what stays comes
    model: Any = lower(placed(found.model, place))
    # when the server has gone there is nothing to save, and an engine that stands still would never see it
    leave = partial(os._exit, 0)
    if found.tokenizer is not None:
        from lissom.engine.host import Host, greeting

        engine = engine_of(model, found.tokenizer, found.cache, place=place, **how)
        return Host(engine, link, leave=leave), {**greeting(engine), "evidence": found.evidence}
    if how["draft"] is not None:
        raise DataError(f"--draft guesses the tokens of a language model, which {folder} is not; leave it out")
    if found.signature is None:
        raise DataError(f"{folder} does not say what goes in and out; save it with example=a batch to serve it")

    from lissom.engine.modules import ModuleHost
    from lissom.engine.modules import greeting as greeting_of

    host = ModuleHost(model, found.signature, link, place=place, leave=leave)
    return host, {**greeting_of(model, found.signature), "evidence": found.evidence}


def engine_of(
    model: Any,
    tokenizer: Any,
    certified: str,
    *,
    place: Any,
    cache: str,
    draft: str | None,
    speculate: str,
    max_tokens_in_cache: int,
    max_batch: int,
) -> Any:
    """The engine of a language model; its cache is as it was `certified` unless told otherwise."""
    from lissom.artifact import open_folder
    from lissom.engine.engine import Engine
    from lissom.engine.lower import lower, placed

    guesses = None if draft is None else open_folder(draft, bare=place.type == "cpu")
    if guesses is not None and guesses.tokenizer is None:
        raise DataError(f"--draft {draft} is no language model; give a compressed copy of the one that is served")
    return Engine(
        model,
        tokenizer,
        max_tokens_in_cache=max_tokens_in_cache,
        max_batch=max_batch,
        cache=certified if cache == "auto" else cache,
        draft=None if guesses is None else lower(placed(guesses.model, place)),  # type: ignore[arg-type]
        speculate=speculate,
    )


if __name__ == "__main__":
    main(sys.argv[1])
