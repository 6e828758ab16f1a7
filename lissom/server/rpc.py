"""The Open Inference Protocol v2 over gRPC, for models that are no language models: what inference.py is over HTTP.

The messages are those of the protocol as `tritonclient` brings them (`pip install lissom[grpc]`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from pydantic import ValidationError

from lissom.artifact.datatypes import NAMES
from lissom.errors import DataError, LissomError
from lissom.server.failures import explain, unknown_model
from lissom.server.keys import ANYBODY, Caller, Keys
from lissom.server.models import Models
from lissom.server.service import Limits
from lissom.server.wire import InferRequest

try:
    import grpc
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc as protocol
except ImportError as error:
    raise DataError(f"serve: gRPC needs a package that is not here ({error}): pip install 'lissom[grpc]'") from error

log = logging.getLogger("lissom.server")
OPEN = frozenset({"ServerLive", "ServerReady"})
HEAD = 2**16  # bytes that a message may have beside those of its tensors
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
CONTENTS = {  # where values are that are not given as bytes
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}

Method = Callable[["Service", Any, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to listen, with the files of a certificate and its key or without, and whom to tell."""

    host: str
    port: int
    tls: tuple[str | Path, str | Path] | None
    announce: Callable[[str], None]


def answered(method: Method) -> Method:
    """The method, for those who may call it; its failures told in the words of gRPC."""

    async def call(service: "Service", asked: Any, context: Any) -> Any:
        try:
            service.caller(method.__name__, context).knock()
            return await method(service, asked, context)
        except HTTPException as error:
            status, why = STATUS.get(error.status_code, grpc.StatusCode.INTERNAL), str(error.detail)
        except ValidationError as error:
            status, why = grpc.StatusCode.INVALID_ARGUMENT, explain(error.errors())[0]
        except LissomError as error:
            status, why = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except asyncio.CancelledError:
            raise
        except Exception:  # the boundary of a call: nothing of our inside is told
            log.exception("%s failed", method.__name__)
            status, why = grpc.StatusCode.INTERNAL, "the server failed to answer this request; its log says why"
        return await context.abort(status, why)  # which raises

    return call


class Service(protocol.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """What can be called."""

    def __init__(self, models: Models, keys: Keys, version: str) -> None:
        self._models, self._keys, self._version = models, keys, version

    def caller(self, method: str, context: Any) -> Caller:
        """Who calls.

        Raises:
            HTTPException: nobody who may.
        """
        if not self._keys.needed or method in OPEN:
            return ANYBODY
        told = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        scheme, _, given = told.get("authorization", "").partition(" ")
        key = given if scheme.lower() == "bearer" else told.get("x-api-key", "")
        if (found := self._keys.caller(key.strip().encode())) is None:
            raise HTTPException(401, "a valid API key is needed: authorization: Bearer KEY, or x-api-key: KEY")
        return found

    @answered
    async def ServerLive(self, asked: Any, context: Any) -> Any:
        """Whether it runs."""
        return messages.ServerLiveResponse(live=True)

    @answered
    async def ServerReady(self, asked: Any, context: Any) -> Any:
        """Whether all models can be asked."""
        return messages.ServerReadyResponse(ready=not any(one.line.trouble for one in self._models.every.values()))

    @answered
    async def ServerMetadata(self, asked: Any, context: Any) -> Any:
        """What it is."""
        return messages.ServerMetadataResponse(name="lissom", version=self._version)

    @answered
    async def ModelReady(self, asked: Any, context: Any) -> Any:
        """Whether a model can be asked."""
        return messages.ModelReadyResponse(ready=self._model(asked.name).line.trouble is None)

    @answered
    async def ModelMetadata(self, asked: Any, context: Any) -> Any:
        """What goes in and out."""
        card = self._model(asked.name).card()
        tensor = messages.ModelMetadataResponse.TensorMetadata
        inputs, outputs = ([tensor(**spec) for spec in card[side]] for side in ("inputs", "outputs"))
        return messages.ModelMetadataResponse(
            name=card["name"], platform=card["platform"], inputs=inputs, outputs=outputs
        )

    @answered
    async def ModelInfer(self, asked: Any, context: Any) -> Any:
        """The outputs of inputs, as bytes."""
        model = self._model(asked.model_name)
        left = context.time_remaining()
        outputs = await model.outputs(*request_of(asked), timeout=inf if left is None else left)
        if wanted := [output.name for output in asked.outputs]:
            outputs = {name: outputs[name] for name in wanted}
        described = [
            messages.ModelInferResponse.InferOutputTensor(name=name, datatype=NAMES[t.dtype], shape=list(t.shape))
            for name, t in outputs.items()
        ]
        from lissom.engine.modules import raw

        values = [raw(tensor) for tensor in outputs.values()]
        return messages.ModelInferResponse(
            model_name=asked.model_name, id=asked.id, outputs=described, raw_output_contents=values
        )

    def _model(self, name: str) -> Any:
        if name not in self._models.modules:
            raise unknown_model(name, sorted(self._models.modules))
        return self._models.modules[name]


def request_of(asked: Any) -> tuple[InferRequest, bytes]:
    """The request as HTTP has it, and the bytes behind it.

    Raises:
        DataError: there are bytes of some inputs and not of all.
    """
    behind = list(asked.raw_input_contents)
    if behind and len(behind) != len(asked.inputs):
        raise DataError(f"raw_input_contents: {len(behind)} given, and there are {len(asked.inputs)} inputs")
    inputs = list[Mapping[str, Any]]()
    for place, tensor in enumerate(asked.inputs):
        given: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
        if behind:
            given["parameters"] = {"binary_data_size": len(behind[place])}
        elif tensor.datatype in CONTENTS:
            given["data"] = list(getattr(tensor.contents, CONTENTS[tensor.datatype]))
        else:
            raise DataError(f"input {tensor.name!r}: {tensor.datatype} is given in raw_input_contents")
        inputs.append(given)
    outputs = [{"name": output.name} for output in asked.outputs]
    whole = {"inputs": inputs, "outputs": outputs, **({"id": asked.id} if asked.id else {})}
    return InferRequest.model_validate(whole), b"".join(behind)


@asynccontextmanager
async def answering(place: Place, models: Models, keys: Keys, limits: Limits, version: str) -> AsyncIterator[None]:
    """Calls are answered meanwhile.

    Raises:
        DataError: it cannot be listened to.
    """
    most = limits.tensor_bytes + HEAD
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", most),
            ("grpc.max_send_message_length", most),
            ("grpc.so_reuseport", 0),
        ]
    )
    protocol.add_GRPCInferenceServiceServicer_to_server(Service(models, keys, version), server)
    address = f"[{place.host}]" if ":" in place.host else place.host
    try:
        if place.tls is None:
            port = server.add_insecure_port(f"{address}:{place.port}")
        else:
            certificate, key = (Path(file).read_bytes() for file in place.tls)
            port = server.add_secure_port(f"{address}:{place.port}", grpc.ssl_server_credentials([(key, certificate)]))
    except RuntimeError as error:
        raise DataError(f"serve: cannot listen on {address}:{place.port} for gRPC: {error}; choose another") from error
    await server.start()
    place.announce(f"grpc{'s' if place.tls else ''}://{address}:{port}")
    try:
        yield
    finally:
        await server.stop(limits.grace_seconds)
