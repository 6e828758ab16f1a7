"""The routes of the Open Inference Protocol v2 (KServe), for models that are no language models."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from lissom.server.failures import say, unknown_model

if TYPE_CHECKING:
    from lissom.server.modules import Inference


def routes(models: "Mapping[str, Inference]", version: str) -> APIRouter:
    """The routes under /v2, apart from health."""
    router = APIRouter(prefix="/v2")

    def model(name: str) -> "Inference":
        if name not in models:
            raise unknown_model(name, sorted(models))
        return models[name]

    @router.get("")
    async def server() -> Response:
        return say(200, {"name": "lissom", "version": version, "extensions": ["binary_tensor_data"]})

    @router.get("/models/{name}")
    async def metadata(name: str) -> Response:
        return say(200, model(name).card())

    @router.get("/models/{name}/ready")
    async def ready(name: str) -> Response:
        return say(200, {"name": model(name).name, "ready": True})

    @router.post("/models/{name}/infer")
    async def infer(name: str, request: Request) -> Response:
        return await model(name).infer(request)

    return router
