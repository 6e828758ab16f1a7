"""The door: who may come in, how much they may carry, and the count of those who came."""

import asyncio
import hmac
import re
import uuid
from hashlib import sha256

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lissom.server.failures import refuse
from lissom.server.metrics import Metrics
from lissom.server.service import Limits

NAME = b"x-request-id"
PLAIN = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
OPEN = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})


class Guard:
    """Checks the key and reads the body, whole and within the limits, before the application sees the request."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, limits: Limits, metrics: Metrics) -> None:
        self._app = app
        self._key = None if api_key is None else sha256(api_key.encode()).digest()
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, name = 500, _name(dict(scope["headers"]).get(NAME, b""))
        scope["request_id"] = name.decode()

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

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = dict(scope["headers"]), scope["path"]
        if not self._known(path, headers):
            wanted = "a valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY"
            refusal = refuse(path, 401, wanted, headers={"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
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

    def _known(self, path: str, headers: dict[bytes, bytes]) -> bool:
        """Digests are compared, in constant time, so that neither content nor length of the key leaks."""
        if self._key is None or path in OPEN:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")  # where Anthropic's clients have it
        return hmac.compare_digest(sha256(given.strip()).digest(), self._key)


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
