"""A model that is no language model at work: tensors of the Open Inference Protocol in and out, as JSON or bytes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from lissom.server.witness import Witness

LENGTH = "Inference-Header-Content-Length"
FILLED = 16


class Inference:
    """A model at work: requests read, run with those that wait beside them, and answered.

    Raises:
        ModelError: the signature does not declare its tensors as it should.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        line: Line,
        limits: Limits,
        metrics: Metrics,
        *,
        max_batch: int,
        max_delay_ms: float,
    ) -> None:
        self._signature: Mapping[str, Any] = line.greeting["signature"]
        _check(name, self._signature)
        self.name, self.tokenizer, self.line = name, tokenizer, line
        self.max_batch, self.created = max_batch, int(time.time())
        self._asked = 0  # requests that are being answered
        self.witness: Witness | None = None
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

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Somebody waits meanwhile."""
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    def card(self) -> dict[str, Any]:
        """The model's metadata."""
        card = {"name": self.name, "versions": [], "platform": "pytorch", **self._signature}
        evidence = self.line.greeting["evidence"]
        shadow = {} if self.witness is None else {"shadow": self.witness.told()}
        return {**card, **({} if evidence is None else {"evidence": evidence}), **shadow}

    def openai_card(self) -> dict[str, Any]:
        """What /v1/models says of a text encoder."""
        named = {"id": self.name, "object": "model", "created": self.created, "owned_by": "lissom"}
        return {**named, "vectors": True, "max_model_len": self.longest, "evidence": self.line.greeting["evidence"]}

    async def disagreement(self, other: "Inference", inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
        """How far the other's outputs of these inputs are from ours: the mean of `apart` over the outputs.

        Of a text encoder it is how far the cosines of its vectors with ours are from 1.

        Raises:
            HTTPException: the other has no room, or is in trouble.
        """
        other.batches.check()
        theirs = await other.batches.run(inputs, inf)
        if self.longest is not None:
            cosines = torch.nn.functional.cosine_similarity(outputs[0].double(), theirs[0].double(), dim=-1)
            return float((1 - cosines).clamp(0, 1).mean())
        return sum(map(apart, outputs, theirs)) / len(outputs)

    @property
    def longest(self) -> int | None:
        """Of a text encoder, how many tokens a text may have; None of any other model."""
        found = self.line.greeting.get("longest")
        return None if found is None or self.tokenizer is None else int(found)

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """The vectors of texts, given as tokens: those of like length at once.

        Raises:
            HTTPException: the model failed, has no room, or is in trouble.
        """
        found = dict[int, Tensor]()
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        with self._answering():
            for start in range(0, len(order), self.max_batch):
                places = order[start : start + self.max_batch]
                (vectors,) = await self._run(filled([texts[place] for place in places], self.longest or 0))
                found |= dict(zip(places, vectors, strict=True))
        return [found[place] for place in range(len(texts))]

    async def infer(self, request: Request) -> Response:
        """Answer POST /v2/models/{model}/infer."""
        self.batches.check()
        asked, behind = _split(await request.body(), request.headers.get(LENGTH))
        return self._write(asked, await self.outputs(asked, behind))

    async def outputs(self, asked: InferRequest, behind: bytes, *, timeout: float = inf) -> dict[str, Tensor]:
        """All outputs by name, for inputs as JSON or as bytes behind it, which may wait for so many seconds.

        Raises:
            DataError: the inputs are not what the model takes.
            HTTPException: the model failed, has no room, is in trouble, or was not free in time.
        """
        inputs = self._read(asked, behind)
        self._check_outputs(asked)
        microseconds = asked.parameters.timeout
        patience = timeout if microseconds is None else min(timeout, microseconds / 1e6)
        return dict(zip(self._outputs, await self._run(inputs, patience), strict=True))

    async def _run(self, inputs: list[Tensor], timeout: float = inf) -> list[Tensor]:
        """Outputs, of which the witness is shown its share."""
        self.batches.check()
        with self._answering():
            outputs = await self.batches.run(inputs, timeout)
        if self.witness is not None:
            self.witness.see(partial(self.disagreement, self.witness.other, inputs, outputs))  # type: ignore[arg-type]
        return outputs

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


def filled(texts: Sequence[Sequence[int]], longest: int) -> list[Tensor]:
    """Tokens of texts, filled up to a common length, and which of them are no filling.

    The length is a multiple of some tokens if it can be, so that other requests may have the same and be run beside.
    """
    length = min(-(-max(map(len, texts)) // FILLED) * FILLED, longest)
    tokens = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])
    return [tokens, torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """How far two outputs are from one another, from 0 to 1.

    Of floats with several features, the share of rows whose largest one is another: of logits, the predictions that
    differ. Of any other output, the share of elements that differ by more than a hundredth of the largest.
    """
    if ours.shape != theirs.shape:
        return 1.0
    if not ours.numel():
        return 0.0
    if ours.is_floating_point() and ours.dim() > 1 and ours.shape[-1] > 1:
        return float((ours.argmax(-1) != theirs.argmax(-1)).double().mean())
    a, b = ours.double(), theirs.double()
    return float(((a - b).abs() > 0.01 * b.abs().amax()).double().mean())


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
