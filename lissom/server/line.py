"""The line to an engine that runs elsewhere (`hosts`): frames out and in, a watch over it, and a new one where it ends.

Everything here happens in the event loop.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

from fastapi import HTTPException

from lissom.engine.link import receive, written
from lissom.errors import LissomError
from lissom.server.hosts import Greeting, Host
from lissom.server.service import Limits

log = logging.getLogger("lissom.server")
LONGEST_PAUSE = 60.0  # seconds before an engine that keeps ending is started again
FAILED = "the engine failed; the server's log says why"
STOPPING = "the server is stopping"
STARTING = "the engine ended and is being started again"
OVER = "the engine failed; the server has to be restarted"
STILL = "the engine makes no progress"


@runtime_checkable
class Listener(Protocol):
    """Who is on this side of a line."""

    @property
    def busy(self) -> bool:
        """Whether the engine has been asked for something."""
        ...

    def hear(self, said: Mapping[str, Any], behind: bytes) -> None:
        """Something has come."""

    def give_up(self, reason: HTTPException) -> None:
        """Nothing will come of what the engine has been asked for."""


class Line:
    """To one engine.

    Raises:
        LissomError: there is none for the model.
    """

    def __init__(self, host: Host, limits: Limits) -> None:
        self._host, self._limits = host, limits
        self._listener: Listener
        self.greeting: Greeting
        self._end: socket.socket
        self._end, self.greeting = host.open()
        self.restarts = 0
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._broken = STARTING
        self._deadline: float | None = None
        self._progress = time.monotonic()

    async def start(self, listener: Listener) -> None:
        """Begin to listen for `listener`."""
        self._listener = listener
        await self._connect()
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]

    def drain(self) -> None:
        """Take nothing new, and give what runs a last time to finish."""
        if self._deadline is None:  # it may be stopping already
            self._deadline = time.monotonic() + self._limits.grace_seconds

    async def stop(self) -> None:
        """Stop now, and wait for the engine to end."""
        self._deadline = 0.0
        listening, watching = self._tasks
        watching.cancel()
        if self._writer is None:  # it has failed, or is just being started again
            listening.cancel()
        else:
            self._writer.write_eof()
        await asyncio.wait(self._tasks, timeout=self._limits.grace_seconds)
        self._host.kill()
        listening.cancel()  # where the engine did not end by itself; a thread never may
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        await asyncio.wait(self._tasks)

    @property
    def memory(self) -> int | None:
        """Bytes that the engine's process has in memory, where the system says it."""
        return self._host.memory()

    @property
    def ended(self) -> bool:
        """Whether there is no engine to send anything to."""
        return self._writer is None

    @property
    def trouble(self) -> str | None:
        """Why no request can be taken at the moment; None when all is well."""
        if self._deadline is not None:
            return STOPPING
        if self._writer is None:
            return self._broken
        return STILL if self._stands_still else None

    def send(self, said: Mapping[str, Any], behind: bytes = b"") -> None:
        """Send a frame.

        Raises:
            HTTPException: nobody is there.
        """
        if self._writer is None:
            raise HTTPException(503, self._broken)
        if not self._listener.busy:  # it had nothing to make progress with until now
            self._progress = time.monotonic()
        self._writer.write(written(said, behind))

    @property
    def _stands_still(self) -> bool:
        return self._listener.busy and time.monotonic() - self._progress > self._limits.stall_seconds

    async def _connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._end)

    async def _listen(self) -> None:
        """Pass on what the engine says; where it ends, tell those who wait, and start it again if that can be."""
        while True:
            while (frame := await receive(self._reader)) is not None:
                self._progress = time.monotonic()
                self._listener.hear(*frame)
            assert self._writer is not None
            writer, self._writer = self._writer, None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            if self._deadline == 0.0:
                self._listener.give_up(HTTPException(503, STOPPING))
                return
            log.error("an engine ended; those who wait for it are told")
            self._broken = STARTING if self._host.again else OVER
            self._listener.give_up(HTTPException(500, FAILED))
            if not self._host.again:
                return
            await self._open_again()

    async def _open_again(self) -> None:
        pause = 0.0
        while self._writer is None:
            await asyncio.sleep(pause)
            pause = min(max(2 * pause, 1.0), LONGEST_PAUSE)
            self._host.kill()
            try:
                self._end, self.greeting = await asyncio.to_thread(self._host.open)
            except (LissomError, OSError) as error:
                log.error("an engine could not be started again: %s", error)
                continue
            self.restarts += 1
            await self._connect()

    async def _watch(self) -> None:
        """See that the engine gets on while it has work, and that the last time to finish ends."""
        while True:
            await asyncio.sleep(min(self._limits.stall_seconds / 4, 0.25))
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._listener.give_up(HTTPException(503, STOPPING))
            if self._stands_still and self._host.again:
                log.error("an engine has made no progress for %g seconds; it is ended", self._limits.stall_seconds)
                self._host.kill()
