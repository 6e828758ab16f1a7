"""The line to an engine: what is left of it where the engine does not end when it is told to."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException

from lissom.server import Limits
from lissom.server.line import Line
from lissom.server.service import Service, TensorService


class Deaf:
    """A host whose engine hears nothing, not even that it shall end."""

    again = False
    service: Service = TensorService.__new__(TensorService)

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.killed = False

    def open(self) -> tuple[socket.socket, Mapping[str, Any]]:
        return self.ours, {}

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None: ...

    def memory(self) -> int | None:
        return None


class Nobody:
    """Waits for nothing."""

    busy = False

    def hear(self, said: Mapping[str, Any], behind: bytes) -> None: ...

    def give_up(self, reason: HTTPException) -> None: ...


def test_a_line_is_closed_even_where_its_engine_does_not_end() -> None:
    host = Deaf()
    unsent = {"text": "x" * 10_000_000}  # more than the socket holds, so that closing in good order would wait for ever

    async def once() -> None:
        line = Line(host, Limits(grace_seconds=0.05))
        await line.start(Nobody())
        line.send(unsent)
        await line.stop()
        assert line.ended

    asyncio.run(once())
    assert host.killed
    assert host.ours.fileno() == -1
    host.theirs.close()
