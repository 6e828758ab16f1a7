"""The door: who may come in, how much they may carry, and the count of those who came."""

import asyncio
import ipaddress
import logging
import re
import time
import uuid

from fastapi import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lissom.server.failures import refuse
from lissom.server.keys import ANYBODY, Caller, Keys
from lissom.server.metrics import Metrics
from lissom.server.service import Limits

log = logging.getLogger("lissom.server")
NAME = b"x-request-id"
PLAIN = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
HOST = re.compile(r"([^:\[\]]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
OPEN = frozenset({"/", "/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})


class Guard:
    """Checks the key and reads the body, whole and within the limits, before the application sees the request."""

    def __init__(self, app: ASGIApp, *, keys: Keys, limits: Limits, metrics: Metrics) -> None:
        self._app, self._keys = app, keys
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, name, begun = 500, _name(dict(scope["headers"]).get(NAME, b"")), time.monotonic()
        scope["request_id"], scope["figures"] = name.decode(), {}

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (NAME, name)]}
            await send(message)

        try:
            await self._admit(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.add(route, str(status))
            told = {"request": name.decode(), "method": scope["method"], "route": route, "status": status}
            seconds = {"seconds": round(time.monotonic() - begun, 4)}
            log.info("request", extra={"figures": {**told, **seconds, **scope["figures"]}})

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = dict(scope["headers"]), scope["path"]
        if not self._keys.needed and not _of_this_machine(headers.get(b"host", b"localhost")):
            await refuse(path, 403, "without a key this server answers as localhost alone")(scope, receive, send)
            return
        if (caller := self._caller(path, headers)) is None:
            wanted = "a valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY"
            refusal = refuse(path, 401, wanted, headers={"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        try:
            caller.knock()
        except HTTPException as error:
            await refuse(path, error.status_code, error.detail, headers=error.headers)(scope, receive, send)
            return
        scope["caller"] = caller
        if caller.name:
            scope["figures"]["key"] = caller.name
        cap = self._limits.tensor_bytes if path.startswith("/v2") else self._limits.text_bytes
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await _read(headers, receive, cap)
        except ClientDisconnect:
            return
        except TimeoutError:
            await refuse(path, 408, "the body did not arrive in time")(scope, receive, send)
            return
        if body is None:
            bye = {"Connection": "close"}  # the rest of the body is still on its way
            await refuse(path, 413, f"the body is larger than {cap} bytes", headers=bye)(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _caller(self, path: str, headers: dict[bytes, bytes]) -> Caller | None:
        """Who asks; None for somebody who must not."""
        if not self._keys.needed or path in OPEN:
            return ANYBODY
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")  # where Anthropic's clients have it
        return self._keys.caller(given.strip())


def _of_this_machine(host: bytes) -> bool:
    """Whether a client knows the server as localhost or by an address.

    By any other name a page of a stranger may have led a browser here (DNS rebinding), which needs no key to come in.
    """
    name = HOST.fullmatch(host.decode("latin-1").lower())
    if name is None:
        return False
    try:
        return bool(ipaddress.ip_address(name[1].strip("[]")))
    except ValueError:
        return name[1] == "localhost"


def _name(given: bytes) -> bytes:
    """The name of a request: its client's, if that can be one, or a new one."""
    return given if PLAIN.fullmatch(given) else uuid.uuid4().hex.encode()


async def _read(headers: dict[bytes, bytes], receive: Receive, cap: int) -> bytes | None:
    """The body; None when it is larger than the cap, announced or not."""
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > cap:
        return None
    parts, size, more = list[bytes](), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > cap:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body once, and after that what the server gives: the news that the client has gone."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
