"""A process that puts a language model together, so that the engine's own needs no PyTorch.

To import PyTorch takes 140 MB, whatever is used of it: as much as the weights of a small model. So a process that runs
a program asks another one for it, over a link, gets it as a file in memory (image.py), and the other one ends.

    python -m lissom.engine.build FD

The first frame in says which folders to read, and for each a descriptor of a file to write to. One frame comes out.
Who keeps the files can start another engine from them, which needs nobody to put it together.
"""

import gc
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lissom import errors
from lissom.artifact.evidence import objection
from lissom.artifact.manifest import MANIFEST
from lissom.engine.kernels import native
from lissom.engine.link import Link
from lissom.errors import ArtifactError, LissomError, ModelError
from lissom.files import read_json

log = logging.getLogger("lissom.engine")

CACHES = ("auto", "float", "bfloat16", "int8")  # that programs write to


def build(
    folders: Sequence[str | Path], files: Sequence[BinaryIO], *, cache: str, pages: int, uncertified: bool
) -> bool:
    """Have the models of some folders written to files.

    Args:
        folders: that of the model, and that of one which drafts for it, if any, of which no certificate is asked.
        files: one of `empty` for each.
        cache: as `put_together` takes it, like the rest.
        pages: of each.
        uncertified: of the first.

    Returns:
        Whether they are written. What is no language model of ours, or has layers, or keys and values, that no kernel
        knows, takes PyTorch; and there may be no room for it.

    Raises:
        LissomError: what is wrong with a folder.
    """
    if len(files) < len(folders) or not all(alone(Path(folder), cache) for folder in folders):
        return False
    with ExitStack() as at_last:
        ours, theirs = socket.socketpair()
        at_last.callback(theirs.close)
        link = Link(ours)
        at_last.callback(link.close)
        descriptors = [file.fileno() for file in files]
        command = [sys.executable, "-m", "lissom.engine.build", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno(), *descriptors], stdin=subprocess.DEVNULL)
        theirs.close()
        asked = [
            {"folder": str(folder), "descriptor": fd, "cache": cache, "pages": pages, "uncertified": any_of_them}
            for folder, fd, any_of_them in zip(folders, descriptors, [uncertified, True], strict=False)
        ]
        link.send({"asked": asked})

        import lissom.engine.image  # noqa: F401  # while the other one imports more

        frame = link.receive()
        if frame is None:
            raise ModelError(f"serve: the process that reads {folders[0]} ended; what it wrote says why")
        threading.Thread(target=process.wait, name="the end of who put it together", daemon=True).start()
        said, _ = frame
        if "error" in said:
            raise getattr(errors, said["error"])(said["message"])
        return bool(said["written"])


def alone(folder: Path, cache: str) -> bool:
    """Whether a folder says enough of a language model for a process without PyTorch."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    kind = manifest.get("cache", "auto") if cache == "auto" else cache
    told = manifest.get("kind") != "module" and "tokenizer" in manifest
    return told and kind in CACHES and native.built() is not None


def empty(count: int) -> list[BinaryIO]:
    """Files that have no name, in memory where the system has such files, not buffered; none where there is no room."""
    with suppress(AttributeError, OSError):  # Linux has files in memory, and may forbid them
        return [os.fdopen(os.memfd_create("lissom"), "r+b", buffering=0) for _ in range(count)]
    with suppress(OSError):
        return [tempfile.TemporaryFile(buffering=0) for _ in range(count)]
    return []


def put_together(folder: str, descriptor: int, *, cache: str, pages: int, uncertified: bool) -> bool:
    """Write the model of a folder to a file; False where it has layers that run in PyTorch only, or no room is left.

    Args:
        folder: what `open_folder` opens.
        descriptor: of the file.
        cache: how keys and values are held; "auto" is as they were when it was certified.
        pages: so many.
        uncertified: whether it may be one whose certificate does not hold.

    Raises:
        LissomError: what is wrong with the folder.
    """
    from lissom.artifact import open_folder

    found = open_folder(folder, bare=True)  # first, since it checks the files while PyTorch is imported

    import torch

    from lissom.engine.cache import kind_of_cache
    from lissom.engine.decoder import native_runner
    from lissom.engine.image import Ready, write
    from lissom.engine.lower import lower, placed

    vouch(folder, found.manifest, uncertified=uncertified)
    model: Any = lower(placed(found.model, torch.device("cpu")))
    runner = native_runner(
        model, pages=pages, cache=kind_of_cache(found.cache if cache == "auto" else cache, model.config)
    )
    if runner is None:
        return False
    ready = Ready(passes=runner.passes, pages=pages, config=model.config, generation_config=model.generation_config)
    told = {"evidence": dict(found.evidence), "tokenizer": found.manifest["tokenizer"]}
    del found, model, runner
    try:
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            write(file, ready, told)
    except OSError as error:  # no room for it
        log.warning("%s stays with PyTorch: %s", folder, error)
        return False
    return True


def vouch(folder: str | Path, manifest: Mapping[str, Any], *, uncertified: bool) -> None:
    """See that the certificate of a model holds, unless it may be uncertified.

    Raises:
        ArtifactError: it does not.
    """
    fault = objection(manifest.get("certificate"))
    if fault and not uncertified:
        raise ArtifactError(f"{folder} is not served: {fault}; choose another, or serve it all the same: --uncertified")


def main(descriptor: str) -> None:
    """Answer one frame, and end at once; also when who asked has gone."""
    gc.disable()  # nothing of it stays
    link = Link(socket.socket(fileno=int(descriptor)))
    frame = link.receive()
    if frame is None:
        return
    threading.Thread(target=lambda: (link.receive(), os._exit(0)), name="who asked", daemon=True).start()
    try:
        every = [put_together(**asked) for asked in frame[0]["asked"]]
        link.send({"written": all(every)})
    except LissomError as error:
        link.send({"error": type(error).__name__, "message": str(error)})
    os._exit(0)  # to take PyTorch apart would keep a core from the first prompt


if __name__ == "__main__":
    main(sys.argv[1])
