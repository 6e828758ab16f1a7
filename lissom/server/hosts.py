"""Where an engine runs: in a process of its own, or, for a model that is in memory already, in a thread.

What goes wrong in a process stays in it: it can be killed and started anew. A thread can be neither.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from lissom import errors
from lissom.engine.build import empty
from lissom.engine.link import Link
from lissom.errors import ModelError
from lissom.server.service import FolderService, LanguageService, Service, TensorService

Greeting = Mapping[str, Any]


@runtime_checkable
class Host(Protocol):
    """Something that runs a service at the other end of a socket; `again` says whether it can do so once more."""

    again: bool

    @property
    def service(self) -> Service:
        """What it runs."""
        ...

    def open(self) -> tuple[socket.socket, Greeting]:
        """This end of the socket, and what the engine says of itself.

        Raises:
            LissomError: there is no engine for the model.
        """
        ...

    def kill(self) -> None:
        """End it now, whatever it does, if that is possible."""

    def close(self) -> None:
        """Give it up: nobody listens to what it says, and nobody will."""

    def memory(self) -> int | None:
        """Bytes that the process it runs in has in memory, where the system says it."""


class InThread:
    """Runs a model in memory."""

    again = False

    def __init__(self, service: LanguageService | TensorService) -> None:
        self.service = service
        self._end: socket.socket | None = None

    def open(self) -> tuple[socket.socket, Greeting]:
        """Make what runs it, and let that work.

        Raises:
            ModelError: the engine does not know the model's family.
        """
        service = self.service
        ours, theirs = socket.socketpair()
        self._end, link = ours, Link(theirs)
        try:
            host, greeting = language(service, link) if isinstance(service, LanguageService) else module(service, link)
        except BaseException:
            link.close()
            raise
        threading.Thread(target=host.run, name=f"engine of {service.name}", daemon=True).start()
        return ours, {**greeting, "evidence": service.evidence}

    def kill(self) -> None:
        """Nothing ends a thread but itself."""

    def close(self) -> None:
        """Give it up."""
        if self._end is not None:
            self._end.close()

    def memory(self) -> int | None:
        """That of this very process."""
        return resident("self")


def resident(process: int | str) -> int | None:
    """Bytes that a process has in memory; None where the system does not say it as Linux does."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def language(service: LanguageService, link: Link) -> tuple[Any, Greeting]:
    """What runs a language model, and its greeting."""
    from lissom.engine.engine import Engine
    from lissom.engine.host import Host, greeting

    engine = Engine(
        service.model,
        service.tokenizer,
        max_tokens_in_cache=service.max_tokens_in_cache,
        max_batch=service.max_batch,
        cache=service.cache,
        draft=service.draft,
        speculate=service.speculate,
    )
    return Host(engine, link), greeting(engine)


def module(service: TensorService, link: Link) -> tuple[Any, Greeting]:
    """What runs any other model, and its greeting."""
    from lissom.engine.modules import ModuleHost, greeting

    return ModuleHost(service.module, service.signature, link), greeting(service.module, service.signature)


class InProcess:
    """Runs the engine of a folder, from the moment that it is made, so that several can be read side by side.

    What has been put together once stays in files in memory, from which an engine that takes the place of another
    starts in a moment.
    """

    again = True

    def __init__(self, service: FolderService) -> None:
        self.service = service
        self._process: subprocess.Popen[bytes] | None = None
        self._files, self._whole = list[BinaryIO](), False
        self._link = self._start()

    def open(self) -> tuple[socket.socket, Greeting]:
        """Wait until the folder has been read.

        Raises:
            LissomError: what is wrong with it.
        """
        if self._process is None:
            self._link = self._start()
        if (frame := self._link.receive()) is None:
            self.close()
            raise ModelError(f"serve: the process that reads {self.service.folder} ended; what it wrote says why")
        said, _ = frame
        if "error" in said:
            self.close()
            raise getattr(errors, said["error"])(said["message"])
        self._whole = said.get("whole", False)
        if not self._whole:
            self._forget()
        return self._link.release(), said

    def kill(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Give it up."""
        self.kill()
        self._link.close()
        self._forget()

    def memory(self) -> int | None:
        """That of the process, while there is one."""
        return None if self._process is None else resident(self._process.pid)

    def _forget(self) -> None:
        for file in self._files:
            file.close()
        self._files, self._whole = [], False

    def _start(self) -> Link:
        self._files = self._files or empty(1 if self.service.draft is None else 2)
        descriptors = [file.fileno() for file in self._files]
        with ExitStack() as at_last:
            ours, theirs = socket.socketpair()
            at_last.callback(theirs.close)
            command = [sys.executable, "-m", "lissom.engine.process", str(theirs.fileno())]
            # a session of its own: a key pressed to stop the server must not stop what it still needs
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno(), *descriptors], stdin=subprocess.DEVNULL, start_new_session=True
            )
        link = Link(ours)
        service = self.service
        asked = {
            "folder": str(service.folder),
            "cache": service.cache,
            "target": service.target,
            "draft": None if service.draft is None else str(service.draft),
            "speculate": service.speculate,
            "uncertified": service.uncertified,
            "max_tokens_in_cache": service.max_tokens_in_cache,
            "max_batch": service.max_batch,
            "files": descriptors,
            "whole": self._whole,
        }
        link.send(asked)
        return link
