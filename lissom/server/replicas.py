"""Replicas of lissom's server in a Ray cluster: Ray Serve starts, scales, replaces and updates them.

Each replica is the whole application, with an engine in a process of its own, behind Ray's HTTP proxy. A config file
(`lissom deploy --to ray`) names `build`, and so does a command: `serve run lissom.server.replicas:build folder=small`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.types import ASGIApp


class Replicas(BaseModel):
    """What Ray's config says of an application.

    `folder` is the model, by a path that is the same on every machine; `keys` a file of keys (`lissom keys`). A replica
    takes `at_once` requests and queues as many more; between `least` and `most` replicas there are as many as keep
    `at_once` of them busy.
    """

    model_config = ConfigDict(extra="forbid")

    folder: str
    name: str = ""
    keys: str | None = None
    at_once: int = Field(default=16, ge=1)
    least: int = Field(default=1, ge=1)
    most: int = Field(default=1, ge=1)
    cores: float = Field(default=1, gt=0)
    drain_s: float = Field(default=60, ge=0)


def build(told: Replicas) -> "Application":
    """The application, as Ray Serve runs it.

    Raises:
        DataError: the package is missing.
    """
    from lissom.errors import DataError

    try:
        from ray import serve
    except ImportError:
        raise DataError("replicas: needs Ray Serve; install it with `pip install lissom[ray]`") from None

    def made() -> "ASGIApp":
        """The server, when a replica starts."""
        from lissom.server import FolderService, InProcess, create_app

        name = told.name or Path(told.folder).resolve().name
        service = FolderService(folder=told.folder, name=name, max_batch=told.at_once)
        return create_app([InProcess(service)], keys=told.keys)

    class Server:
        """What a replica is: the application alone."""

    scaling = {"min_replicas": told.least, "max_replicas": max(told.least, told.most)}
    options: dict[str, Any] = {
        "name": "lissom",
        "autoscaling_config": {**scaling, "target_ongoing_requests": told.at_once},
        "max_ongoing_requests": 2 * told.at_once,
        "graceful_shutdown_timeout_s": told.drain_s,
        "ray_actor_options": {"num_cpus": told.cores},
    }
    return serve.deployment(serve.ingress(made)(Server)).options(**options).bind()
