"""A link between a server and an engine that runs beside it: frames over a socket, JSON with bytes behind. No pickle.

A frame is two lengths, of 4 and 8 bytes, a JSON object of the first length, and bytes of the second.
"""

import json
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lissom.engine.sequence import Grammar, Sampling

if TYPE_CHECKING:
    import asyncio

LENGTHS = struct.Struct(">IQ")

Frame = tuple[dict[str, Any], bytes]


def written(said: Mapping[str, Any], behind: bytes = b"") -> bytes:
    """A frame as bytes."""
    text = json.dumps(said).encode()
    return b"".join((LENGTHS.pack(len(text), len(behind)), text, behind))


class Link:
    """One end of the link, for a thread that waits."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._stream = end.makefile("rb")

    def send(self, said: Mapping[str, Any], behind: bytes = b"") -> None:
        """Send a frame; one thread at a time.

        Raises:
            OSError: the other end has gone.
        """
        self._end.sendall(written(said, behind))

    def receive(self) -> Frame | None:
        """The next frame; None when the other end has gone, or sends no more."""
        try:
            head = self._stream.read(LENGTHS.size)
            if len(head) < LENGTHS.size:
                return None
            length, size = LENGTHS.unpack(head)
            text, behind = self._stream.read(length), self._stream.read(size)
        except ConnectionError:  # it has gone with something unread
            return None
        return None if len(text) < length or len(behind) < size else (json.loads(text), behind)

    def release(self) -> socket.socket:
        """The socket itself, for whoever goes on with it; nothing may have been sent that was not received."""
        self._stream.close()
        return self._end

    def close(self) -> None:
        """Let the other end know that nothing more will come, and whoever waits at this one that nothing does."""
        with suppress(OSError):  # it has gone
            self._end.shutdown(socket.SHUT_RDWR)
        self._stream.close()
        self._end.close()


async def receive(reader: "asyncio.StreamReader") -> Frame | None:
    """The next frame, for an event loop; None when the other end has gone."""
    try:
        length, size = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
        return json.loads(await reader.readexactly(length)), await reader.readexactly(size)
    except (EOFError, ConnectionError):
        return None


def said_of(sampling: Sampling) -> dict[str, Any]:
    """A sampling as JSON has it."""
    return asdict(sampling)


def sampling_of(said: Mapping[str, Any]) -> Sampling:
    """The sampling that was said.

    Raises:
        DataError: a value out of its range.
    """
    grammar = None if said["grammar"] is None else Grammar(**said["grammar"])
    bias = {int(token): float(value) for token, value in said["logit_bias"].items()}
    tuples = {name: tuple(said[name]) for name in ("stop", "stop_tokens")}
    return Sampling(**{**said, **tuples, "logit_bias": bias, "grammar": grammar})
