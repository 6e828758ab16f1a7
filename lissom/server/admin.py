"""What only who runs the server may do: load, exchange and let go of models, over a Unix socket.

The socket is a file that its owner alone can open, and what is served there is an application of its own: nobody comes
to it any other way.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Response
from pydantic import Field

from lissom.errors import DataError
from lissom.server.failures import install, say
from lissom.server.models import Models
from lissom.server.service import BUDGET, FolderService, Shadow
from lissom.server.wire import Name, Wire

OWNER = 0o600


class LoadRequest(Wire):
    """POST /models: the model of a folder, under a name; in the place of the one of that name, if there is one.

    The rest are the options of a model at the start (`FolderService`, `Shadow`), by the same names.
    """

    name: Annotated[str, Field(min_length=1, max_length=256)]
    folder: Annotated[str, Field(min_length=1, max_length=4096)]
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 16
    max_tokens_in_cache: Annotated[int, Field(ge=16, le=2**30)] = 16_384
    cache: Name = "auto"
    target: Name = "cpu"
    draft: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    speculate: Name = "auto"
    max_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    uncertified: bool = False
    shadow: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 0.05
    max_disagreement: Annotated[float, Field(ge=0, le=1)] = BUDGET.max_drop
    rollback: bool = True


WATCHED = {"share", "max_disagreement", "rollback"}  # of a shadow


def service_of(asked: LoadRequest) -> FolderService:
    """What is to be served, as `lissom serve` makes it of its options.

    Raises:
        DataError: something is said of a shadow, and there is none.
    """
    own = asked.model_dump(exclude={*WATCHED, "shadow"})
    if asked.shadow is None:
        if alone := sorted(WATCHED & asked.model_fields_set):
            raise DataError(f"{alone[0]} is of a shadow; give that as shadow, its folder, or leave {alone[0]} out")
        return FolderService(**own)
    other = FolderService(folder=asked.shadow, name=asked.name, target=asked.target, uncertified=asked.uncertified)
    budget = replace(BUDGET, max_drop=asked.max_disagreement)
    return FolderService(**own, shadow=Shadow(service=other, share=asked.share, budget=budget, rollback=asked.rollback))


def application(models: Models) -> FastAPI:
    """The application behind the socket."""
    app = FastAPI(openapi_url=None)
    install(app)

    @app.get("/models")
    async def every() -> Response:
        told = {name: {"trouble": one.line.trouble, **one.line.greeting} for name, one in models.every.items()}
        return say(200, {"models": told})

    @app.post("/models")
    async def load(asked: LoadRequest) -> Response:
        await models.load(service_of(asked))
        return say(200, {"name": asked.name, "loaded": True})

    @app.delete("/models/{name:path}")
    async def unload(name: str) -> Response:
        models.unload(name)
        return say(200, {"name": name, "unloaded": True})

    return app


@asynccontextmanager
async def administered(models: Models, path: Path | None) -> AsyncIterator[None]:
    """The socket is listened to meanwhile, if there is one.

    Raises:
        DataError: there cannot be one.
    """
    if path is None:
        yield
        return
    with bound(path) as listener:
        config = uvicorn.Config(
            application(models), log_level="warning", access_log=False, server_header=False, lifespan="off"
        )
        server = Beside(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await task


@contextmanager
def bound(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that its owner alone can open; one that another server has left behind makes way.

    Raises:
        DataError: something else is there, or a server that lives.
    """
    with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise
        except OSError as error:
            raise DataError(f"serve: {path} cannot be a socket: {error.strerror or error}; choose another") from error
        raise DataError(f"serve: another server listens on {path}; choose another")
    if path.is_socket():
        path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(path))
            path.chmod(OWNER)  # before it listens, so that nobody can have come in
        except OSError as error:
            raise DataError(f"serve: {path} cannot be a socket: {error.strerror or error}; choose another") from error
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class Beside(uvicorn.Server):
    """A server beside another one, which alone minds the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to it."""
        yield
