"""The application: services in, an ASGI application out; and the way to run it on a socket of this machine."""

import ipaddress
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lissom.errors import DataError
from lissom.resident import settle
from lissom.server import embeddings, inference, messages, openai, page, responses, tokens
from lissom.server.admin import administered, bound
from lissom.server.failures import install, say
from lissom.server.guard import Guard
from lissom.server.hosts import Host
from lissom.server.keys import Keys
from lissom.server.metrics import Metrics
from lissom.server.models import Model, Models
from lissom.server.service import Limits, Service
from lissom.server.traces import traced

if TYPE_CHECKING:
    from lissom.server.rpc import Place

STATES = {  # what an engine says of itself, by the name that gateways look for
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_requests_running": "running",
    "vllm:kv_cache_usage_perc": "usage",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_hits_total": "reused_tokens",
    "vllm:spec_decode_num_draft_tokens_total": "guessed",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted",
}

SEEN = {  # what a witness says of itself
    "lissom_shadow_compared_total": "compared",
    "lissom_shadow_skipped_total": "skipped",
    "lissom_shadow_alarm": "alarm",
    "lissom_shadow_rolled_back": "rolled_back",
}

BACKLOG = 128


class Application:
    """All services behind one door.

    Raises:
        DataError: no service, or two of the same name.
        ModelError: a model that cannot be served.
    """

    def __init__(
        self,
        services: Sequence[Service | Host],
        *,
        keys: Keys,
        admin: Path | None,
        rpc: "Place | None",
        limits: Limits,
    ) -> None:
        self._admin, self._rpc, self._keys, self._limits = admin, rpc, keys, limits
        self._metrics = Metrics()
        self.models = Models(services, limits, self._metrics)
        self._door = Guard(self._assemble(), keys=keys, limits=limits, metrics=self._metrics)

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
        app.include_router(openai.routes(self.models.languages, self.models.modules))
        for api in (responses, messages, tokens):
            app.include_router(api.routes(self.models.languages))
        app.include_router(embeddings.routes(self.models.modules))
        app.include_router(inference.routes(self.models.modules, _version()))
        for prefix in ("", "/v2"):
            app.add_api_route(f"{prefix}/health/live", self._live)
            app.add_api_route(f"{prefix}/health/ready", self._ready)
        app.add_api_route("/health", self._ready)  # where vLLM has it
        app.add_api_route("/", page.shown)
        app.add_api_route("/metrics", self._scrape)
        app.add_api_route("/evidence", self._evidence)
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        await self.models.start()
        async with AsyncExitStack() as at_last:
            at_last.push_async_callback(self.models.stop)  # also where something after them cannot begin
            await at_last.enter_async_context(administered(self.models, self._admin))
            if self._rpc is not None:
                from lissom.server.rpc import answering

                await at_last.enter_async_context(
                    answering(self._rpc, self.models, self._keys, self._limits, _version())
                )
            yield

    async def _live(self) -> Response:
        return say(200, {"live": True})

    async def _ready(self) -> Response:
        troubles = {name: one.line.trouble for name, one in self.models.every.items() if one.line.trouble}
        return say(503, {"ready": False, "reasons": troubles}) if troubles else say(200, {"ready": True})

    async def _evidence(self) -> Response:
        return say(200, {name: proven(one) for name, one in self.models.every.items()})

    async def _scrape(self) -> Response:
        now = {
            metric: {name: one.worker.state.get(value, 0.0) for name, one in self.models.languages.items()}
            for metric, value in STATES.items()
        }
        now["lissom_inference_waiting"] = {name: one.batches.waiting for name, one in self.models.modules.items()}
        now["lissom_engine_restarts_total"] = {name: one.line.restarts for name, one in self.models.every.items()}
        memory = {name: one.line.memory for name, one in self.models.every.items()}
        now["lissom_resident_memory_bytes"] = {name: float(value) for name, value in memory.items() if value}
        seen = {name: one.witness.told() for name, one in self.models.every.items() if one.witness is not None}
        for metric, value in SEEN.items():
            now[metric] = {name: float(told[value]) for name, told in seen.items()}
        for end in ("value", "low", "high"):
            known = {name: told["disagreement"] for name, told in seen.items() if told["disagreement"] is not None}
            now[f"lissom_shadow_disagreement_{end}"] = {name: found[end] for name, found in known.items()}
        return Response(
            self._metrics.render({metric: of for metric, of in now.items() if of}),
            media_type="text/plain; version=0.0.4",
        )


def create_app(
    services: Sequence[Service | Host],
    *,
    api_key: str | None = None,
    keys: str | Path | None = None,
    admin: str | Path | None = None,
    rpc: "Place | None" = None,
    limits: Limits | None = None,
) -> Application:
    """An ASGI application that serves the services, each under its name, or what runs them already (`InProcess`).

    It is open to all, or with an `api_key`, or a file of `keys` (keys.py), to those who have one. With `admin`, the
    path of a Unix socket, its owner can load, exchange and let go of models there as it runs; with `rpc`, a place of
    rpc.py, modules are also served by gRPC.
    """
    socket_at = None if admin is None else Path(admin)
    opened = Keys(api_key, None if keys is None else Path(keys))
    return Application(services, keys=opened, admin=socket_at, rpc=rpc, limits=limits or Limits())


def serve(
    services: Sequence[Service | Host],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    keys: str | Path | None = None,
    tls: tuple[str | Path, str | Path] | None = None,
    admin: str | Path | None = None,
    grpc_port: int | None = None,
    limits: Limits | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until SIGINT or SIGTERM, then let what runs finish. `announce` is told the URL; port 0 takes any.

    `keys` and `admin` are as for `create_app`. With `tls`, the files of a certificate (with those that vouch for it)
    and of its private key, over HTTPS. With a `grpc_port` modules are also served by gRPC there.

    Raises:
        DataError: an address other machines can reach without a key, a bad host, a port in use, files of TLS
            that are none, a place where there can be no socket, or no package for gRPC.
        ModelError: a model that cannot be served.
    """
    limits = limits or Limits()
    if api_key is None and keys is None and not _is_loopback(host):
        raise DataError(f"serve: host {host!r} can be reached by other machines; give a key or use 127.0.0.1")
    if api_key == "":
        raise DataError("serve: the api_key is empty; give one or leave it out")
    if tls is not None:
        _check_tls(*tls)
    if admin is not None:  # to be told now, and not from within a server that has begun
        with bound(Path(admin)):
            pass
    rpc = None
    if grpc_port is not None and not 0 <= grpc_port <= 65535:  # gRPC would take 70000 for 4464
        raise DataError(f"serve: gRPC port {grpc_port} does not exist; choose one from 1 to 65535, or 0 for any")
    if grpc_port is not None:
        from lissom.server.rpc import Place

        rpc = Place(host=host, port=grpc_port, tls=tls, announce=announce)
    with _bind(host, port) as listener, ExitStack() as at_last:
        app = create_app(services, api_key=api_key, keys=keys, admin=admin, rpc=rpc, limits=limits)
        config = uvicorn.Config(
            at_last.enter_context(traced(app)),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(limits.grace_seconds) + 5,
            ssl_certfile=tls[0] if tls else None,
            ssl_keyfile=tls[1] if tls else None,
        )
        listener.listen(BACKLOG)
        shown = f"[{host}]" if ":" in host else host
        settle()
        with _quiet_signals():
            announce(f"http{'s' if tls else ''}://{shown}:{listener.getsockname()[1]}")
            _Server(config, app).run(sockets=[listener])


def proven(model: Model) -> dict[str, Any] | None:
    """What is proven of a model, and what has been seen of it since by the one beside it, if there is one."""
    evidence: dict[str, Any] | None = model.line.greeting["evidence"]
    return evidence if model.witness is None else {**(evidence or {}), "shadow": model.witness.told()}


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
