"""A model that is no language model at work: tensors of the Open Inference Protocol in and out, as JSON or bytes."""

from collections.abc import Mapping
from math import inf
from typing import Any

import torch
from fastapi import Request, Response
from torch import Tensor

from lissom.artifact.datatypes import DATATYPES, NAMES
from lissom.engine.modules import raw
from lissom.errors import DataError, ModelError
from lissom.server.batches import Batches
from lissom.server.failures import say
from lissom.server.line import Line
from lissom.server.metrics import Metrics
from lissom.server.service import Limits
from lissom.server.tensors import listed, read
from lissom.server.wire import InferRequest

LENGTH = "Inference-Header-Content-Length"


class Inference:
    """A model at work: requests read, run with those that wait beside them, and answered.

    Raises:
        ModelError: the signature does not declare its tensors as it should.
    """

    def __init__(
        self, name: str, line: Line, limits: Limits, metrics: Metrics, *, max_batch: int, max_delay_ms: float
    ) -> None:
        self._signature: Mapping[str, Any] = line.greeting["signature"]
        _check(name, self._signature)
        self.name, self.line = name, line
        self._asked = 0  # requests that are being answered
        self.batches = Batches(name, line, limits, metrics, max_batch=max_batch, max_delay_ms=max_delay_ms)
        self.inputs: list[Mapping[str, Any]] = list(self._signature["inputs"])
        self._outputs = [str(output["name"]) for output in self._signature["outputs"]]

    async def start(self) -> None:
        """Begin to work."""
        await self.line.start(self.batches)
        await self.batches.start()

    async def stop(self) -> None:
        """Stop now."""
        await self.batches.stop()
        await self.line.stop()

    async def try_out(self) -> None:
        """See that it answers to zeros, a single one of what may be any number.

        Raises:
            HTTPException: it does not.
        """
        shapes = [[max(size, 1) for size in spec["shape"]] for spec in self.inputs]
        blank = [torch.zeros(s, dtype=DATATYPES[spec["datatype"]]) for s, spec in zip(shapes, self.inputs, strict=True)]
        await self.batches.run(blank, inf)

    @property
    def asked(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._asked)

    def card(self) -> dict[str, Any]:
        """The model's metadata."""
        card = {"name": self.name, "versions": [], "platform": "pytorch", **self._signature}
        evidence = self.line.greeting["evidence"]
        return card if evidence is None else {**card, "evidence": evidence}

    async def infer(self, request: Request) -> Response:
        """Answer POST /v2/models/{model}/infer."""
        self.batches.check()
        self._asked += 1
        try:
            asked, behind = _split(await request.body(), request.headers.get(LENGTH))
            inputs = self._read(asked, behind)
            self._check_outputs(asked)
            microseconds = asked.parameters.timeout
            outputs = await self.batches.run(inputs, inf if microseconds is None else microseconds / 1e6)
            return self._write(asked, dict(zip(self._outputs, outputs, strict=True)))
        finally:
            self._asked -= 1

    def _read(self, asked: InferRequest, behind: bytes) -> list[Tensor]:
        """The inputs in the order of the signature."""
        given = {tensor.name: tensor for tensor in asked.inputs}
        names = [str(spec["name"]) for spec in self.inputs]
        if sorted(tensor.name for tensor in asked.inputs) != sorted(names):
            raise DataError(f"inputs: {[tensor.name for tensor in asked.inputs]} given, the model takes {names}")
        parts: dict[str, bytes] = {}
        for tensor in asked.inputs:  # the bytes follow each other in the order of the request
            if (size := tensor.parameters.binary_data_size) is not None:
                parts[tensor.name], behind = behind[:size], behind[size:]
        if behind:
            raise DataError(f"inputs: {len(behind)} bytes behind the JSON belong to no input; see binary_data_size")
        return [
            read(given[str(spec["name"])], spec["datatype"], spec["shape"], parts.get(str(spec["name"])))
            for spec in self.inputs
        ]

    def _check_outputs(self, asked: InferRequest) -> None:
        for output in asked.outputs:
            if output.name not in self._outputs:
                raise DataError(f"outputs: no {output.name!r}; possible are {', '.join(self._outputs)}")

    def _write(self, asked: InferRequest, outputs: Mapping[str, Tensor]) -> Response:
        wanted = {output.name: output.parameters.binary_data for output in asked.outputs}
        if not wanted:
            wanted = dict.fromkeys(self._outputs, asked.parameters.binary_data_output)
        written, behind = list[dict[str, Any]](), list[bytes]()
        for name, binary in wanted.items():
            tensor = outputs[name]
            body: dict[str, Any] = {"name": name, "shape": list(tensor.shape), "datatype": NAMES[tensor.dtype]}
            if binary:
                behind.append(raw(tensor))
                body["parameters"] = {"binary_data_size": len(behind[-1])}
            else:
                body["data"] = listed(name, tensor)
            written.append(body)
        named = {} if asked.id is None else {"id": asked.id}
        head = say(200, {"model_name": self.name, **named, "outputs": written})
        if not behind:
            return head
        body_bytes = b"".join([bytes(head.body), *behind])
        length = {LENGTH: str(len(head.body))}
        return Response(body_bytes, headers=length, media_type="application/octet-stream")


def _split(body: bytes, length: str | None) -> tuple[InferRequest, bytes]:
    """The JSON of the request and the bytes behind it."""
    if length is None:
        return InferRequest.model_validate_json(body), b""
    if not length.isascii() or not length.isdigit() or int(length) > len(body):
        raise DataError(f"{LENGTH}: {length!r} is no length within a body of {len(body)} bytes")
    return InferRequest.model_validate_json(body[: int(length)]), body[int(length) :]


def _check(name: str, signature: Mapping[str, Any]) -> None:
    for side in ("inputs", "outputs"):
        for spec in signature.get(side, ()):
            if not {"name", "datatype", "shape"} <= set(spec) or spec["datatype"] not in DATATYPES:
                raise ModelError(
                    f"serve: {side} of {name!r} need name, shape and a datatype of {', '.join(DATATYPES)}; "
                    f"found {spec!r}"
                )
        if not signature.get(side):
            raise ModelError(f"serve: the signature of {name!r} declares no {side}")
