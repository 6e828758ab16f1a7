"""A process for the model of a folder: `python -m lissom.engine.process FD`, with one end of a link as a descriptor.

The first frame in says what to open; the first one out is a greeting, or the error that kept it from being opened. A
language model of ours that runs on the kernels in C is put together by another process (build.py), and this one stays
without PyTorch.
"""

import gc
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from lissom.engine.build import build, vouch
from lissom.engine.link import Link
from lissom.engine.logs import TOLD, begin
from lissom.engine.pages import pages_for
from lissom.errors import DataError, LissomError
from lissom.resident import settle

# when the server has gone there is nothing to save, and an engine that stands still would never see it
LEAVE = partial(os._exit, 0)


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


def opened(
    link: Link,
    folder: str,
    *,
    draft: str | None,
    target: str,
    uncertified: bool,
    files: Sequence[int],
    whole: bool,
    **how: Any,
) -> tuple[Any, dict[str, Any]]:
    """What runs the model of a folder, and its greeting, which says whether it is in the files.

    Args:
        link: to who asks it.
        folder: of the model.
        draft: that of one which guesses for it, if any.
        target: where it runs.
        uncertified: whether it may be one whose certificate does not hold.
        files: descriptors of files to write both to.
        whole: whether they have been written to them before.
        how: the rest of what an engine is told.

    Raises:
        LissomError: there is no model in the folder, none that can be served, or one whose certificate does not hold.
    """
    told = {"cache": how["cache"], "pages": pages_for(how["max_tokens_in_cache"]), "uncertified": uncertified}
    folders = [folder] if draft is None else [folder, draft]
    with ExitStack() as at_last:
        images = [at_last.enter_context(os.fdopen(file, "r+b", buffering=0)) for file in files]
        if not (whole or (target == "cpu" and build(folders, images, **told))):
            return with_torch(link, folder, draft=draft, target=target, uncertified=uncertified, **how)

        from lissom.engine.image import read
        from lissom.models.tokenizer import Tokenizer

        (model, said), *drafts = [read(image) for image, _ in zip(images, folders, strict=False)]
    tokenizer = Tokenizer.read(Path(folder), said["tokenizer"])
    host, greeting = language(link, model, tokenizer, said["evidence"], drafts[0][0] if drafts else None, **how)
    return host, {**greeting, "whole": True}


def with_torch(
    link: Link, folder: str, *, draft: str | None, target: str, uncertified: bool, **how: Any
) -> tuple[Any, dict[str, Any]]:
    """What runs a model that needs PyTorch.

    Raises:
        LissomError: as `opened`.
    """
    from lissom.artifact import open_folder

    found = open_folder(folder, bare=target == "cpu")  # first, since it checks the files while PyTorch is imported

    from lissom.engine.lower import lower, placed
    from lissom.hardware.target import check_target

    vouch(folder, found.manifest, uncertified=uncertified)
    place = check_target(target)
    settle()  # all that was needed once, to import, goes before what stays comes
    model: Any = lower(placed(found.model, place))
    if found.tokenizer is not None:
        guesses = None if draft is None else open_folder(draft, bare=place.type == "cpu")
        if guesses is not None and guesses.tokenizer is None:
            raise DataError(f"--draft {draft} is no language model; give a compressed copy of the one that is served")
        guess = None if guesses is None else lower(placed(guesses.model, place))
        how = how if how["cache"] != "auto" else {**how, "cache": found.cache}  # as it was certified
        return language(link, model, found.tokenizer, found.evidence, guess, **how)
    if draft is not None:
        raise DataError(f"--draft guesses the tokens of a language model, which {folder} is not; leave it out")
    if found.signature is None:
        raise DataError(f"{folder} does not say what goes in and out; save it with example=a batch to serve it")

    from lissom.engine.modules import ModuleHost, greeting

    host = ModuleHost(model, found.signature, link, place=place, leave=LEAVE)
    return host, {**greeting(model, found.signature), "evidence": found.evidence}


def language(
    link: Link, model: Any, tokenizer: Any, evidence: Mapping[str, Any], guess: Any, **how: Any
) -> tuple[Any, dict[str, Any]]:
    """What runs a language model, with one that guesses for it, or None; and its greeting."""
    from lissom.engine.engine import Engine
    from lissom.engine.host import Host, greeting

    engine = Engine(model, tokenizer, draft=guess, **how)
    return Host(engine, link, leave=LEAVE), {**greeting(engine), "evidence": evidence}


if __name__ == "__main__":
    main(sys.argv[1])
