"""The application: services in, an ASGI application out; and the way to run it on a socket of this machine."""

import ipaddress
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lissom.errors import DataError
from lissom.server import inference, messages, openai, responses, tokens
from lissom.server.admin import administered, bound
from lissom.server.failures import install, say
from lissom.server.guard import Guard
from lissom.server.hosts import Host
from lissom.server.metrics import Metrics
from lissom.server.models import Models
from lissom.server.service import Limits, Service

STATES = {  # what an engine says of itself, by the name that gateways look for
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_requests_running": "running",
    "vllm:kv_cache_usage_perc": "usage",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_hits_total": "reused_tokens",
    "vllm:spec_decode_num_draft_tokens_total": "guessed",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted",
}

BACKLOG = 128


class Application:
    """All services behind one door.

    Raises:
        DataError: no service, or two of the same name.
        ModelError: a model that cannot be served.
    """

    def __init__(
        self, services: Sequence[Service | Host], *, api_key: str | None, admin: Path | None, limits: Limits
    ) -> None:
        self._admin = admin
        self._metrics = Metrics()
        self.models = Models(services, limits, self._metrics)
        self._door = Guard(self._assemble(), api_key=api_key, limits=limits, metrics=self._metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._door(scope, receive, send)

    def drain(self) -> None:
        """Take no new requests, and let those that run finish within the limit."""
        self.models.drain()

    def _assemble(self) -> ASGIApp:
        # no schema and no documentation pages: they are routes that nobody asked for, and load scripts from elsewhere
        app = FastAPI(lifespan=self._lifespan, openapi_url=None)
        install(app)
        for api in (openai, responses, messages, tokens):
            app.include_router(api.routes(self.models.languages))
        app.include_router(inference.routes(self.models.modules, _version()))
        for prefix in ("", "/v2"):
            app.add_api_route(f"{prefix}/health/live", self._live)
            app.add_api_route(f"{prefix}/health/ready", self._ready)
        app.add_api_route("/metrics", self._scrape)
        app.add_api_route("/evidence", self._evidence)
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        await self.models.start()
        async with administered(self.models, self._admin):
            yield
        await self.models.stop()

    async def _live(self) -> Response:
        return say(200, {"live": True})

    async def _ready(self) -> Response:
        troubles = {name: one.line.trouble for name, one in self.models.every.items() if one.line.trouble}
        return say(503, {"ready": False, "reasons": troubles}) if troubles else say(200, {"ready": True})

    async def _evidence(self) -> Response:
        return say(200, {name: one.line.greeting["evidence"] for name, one in self.models.every.items()})

    async def _scrape(self) -> Response:
        now = {
            metric: {name: one.worker.state.get(value, 0.0) for name, one in self.models.languages.items()}
            for metric, value in STATES.items()
        }
        now["lissom_inference_waiting"] = {name: one.batches.waiting for name, one in self.models.modules.items()}
        now["lissom_engine_restarts_total"] = {name: one.line.restarts for name, one in self.models.every.items()}
        return Response(self._metrics.render(now), media_type="text/plain; version=0.0.4")


def create_app(
    services: Sequence[Service | Host],
    *,
    api_key: str | None = None,
    admin: str | Path | None = None,
    limits: Limits | None = None,
) -> Application:
    """An ASGI application that serves the services, each under its name, or what runs them already (`InProcess`).

    With `admin`, the path of a Unix socket, its owner can load, exchange and let go of models there as it runs.
    """
    socket_at = None if admin is None else Path(admin)
    return Application(services, api_key=api_key, admin=socket_at, limits=limits or Limits())


def serve(
    services: Sequence[Service | Host],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    tls: tuple[str | Path, str | Path] | None = None,
    admin: str | Path | None = None,
    limits: Limits | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until SIGINT or SIGTERM, then let what runs finish. `announce` is told the URL; port 0 takes any.

    `admin` is as for `create_app`. With `tls`, the files of a certificate (with those that vouch for it) and of its
    private key, over HTTPS.

    Raises:
        DataError: an address other machines can reach without an api_key, a bad host, a port in use, files of TLS
            that are none, or a place where there can be no socket.
        ModelError: a model that cannot be served.
    """
    limits = limits or Limits()
    if api_key is None and not _is_loopback(host):
        raise DataError(f"serve: host {host!r} can be reached by other machines; give an api_key or use 127.0.0.1")
    if api_key == "":
        raise DataError("serve: the api_key is empty; give one or leave it out")
    if tls is not None:
        _check_tls(*tls)
    if admin is not None:  # to be told now, and not from within a server that has begun
        with bound(Path(admin)):
            pass
    with _bind(host, port) as listener:
        app = create_app(services, api_key=api_key, admin=admin, limits=limits)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(limits.grace_seconds) + 5,
            ssl_certfile=tls[0] if tls else None,
            ssl_keyfile=tls[1] if tls else None,
        )
        listener.listen(BACKLOG)
        shown = f"[{host}]" if ":" in host else host
        with _quiet_signals():
            announce(f"http{'s' if tls else ''}://{shown}:{listener.getsockname()[1]}")
            _Server(config, app).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Uvicorn, which tells the application that the signal to stop has come."""

    def __init__(self, config: uvicorn.Config, app: Application) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self._app.drain()
        super().handle_exit(sig, frame)


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Uvicorn raises the signal again after it has stopped; a server that stopped cleanly should return cleanly."""
    usual = {sig: signal.signal(sig, lambda *_: None) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sig, handler in usual.items():
            signal.signal(sig, handler)


def _bind(host: str, port: int) -> socket.socket:
    """A socket for the port, made before anything is started so that a port in use is one clear line."""
    if not 0 <= port <= 65535:  # getaddrinfo would take 70000 for 4464
        raise DataError(f"serve: port {port} does not exist; choose one from 1 to 65535, or 0 for any that is free")
    with ExitStack() as unless_it_works:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = unless_it_works.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise DataError(f"serve: cannot listen on {host}:{port}: {error}; choose another port or host") from error
        unless_it_works.pop_all()
        return listener


def _check_tls(certificate: str | Path, key: str | Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:
        raise DataError(
            f"serve: {certificate} and {key} are no certificate and its private key: {error.strerror or error}; "
            "give both as PEM files"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _version() -> str:
    try:
        return version("lissom")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
