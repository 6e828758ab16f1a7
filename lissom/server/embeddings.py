"""The OpenAI API for text encoders: vectors of texts."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Response
from pydantic import Field

from lissom.errors import DataError
from lissom.server.failures import say, unknown_model
from lissom.server.wire import Name, Text, Token, Wire

if TYPE_CHECKING:
    from torch import Tensor

    from lissom.server.modules import Inference

MAX_TEXTS = 2048


class EmbeddingRequest(Wire):
    """POST /v1/embeddings."""

    model: Name
    input: (
        Text
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Name | None = None


def routes(models: "Mapping[str, Inference]") -> APIRouter:
    """The route under /v1."""
    router = APIRouter(prefix="/v1")

    @router.post("/embeddings")
    async def embeddings(asked: EmbeddingRequest) -> Response:
        encoder = models.get(asked.model)
        if encoder is None or encoder.longest is None:
            raise not_an_encoder(asked.model, models)
        texts = await asyncio.to_thread(tokens, encoder, asked.input)
        vectors = await encoder.embed(texts)
        data = [
            {"object": "embedding", "index": index, "embedding": written(cut(vector, asked.dimensions), asked)}
            for index, vector in enumerate(vectors)
        ]
        used = sum(map(len, texts))
        usage = {"prompt_tokens": used, "total_tokens": used}
        return say(200, {"object": "list", "data": data, "model": asked.model, "usage": usage})

    return router


def not_an_encoder(name: str, models: "Mapping[str, Inference]") -> HTTPException:
    """404 for a model that gives no vectors of texts, or is not there."""
    return unknown_model(name, sorted(other for other, one in models.items() if one.longest is not None))


def tokens(encoder: "Inference", given: str | Sequence[Any]) -> list[list[int]]:
    """The tokens of each text.

    Raises:
        DataError: one has too many, or is none of the model's.
    """
    if isinstance(given, str):
        several: list[Any] = [given]
    else:
        several = [list(given)] if isinstance(given[0], int) else list(given)
    found = [encoder.tokenizer.encode(one) if isinstance(one, str) else list(one) for one in several]
    words = len(encoder.tokenizer)
    for place, one in enumerate(found):
        if not one:
            raise DataError(f"input: text {place} has no tokens; leave it out")
        if len(one) > (encoder.longest or 0):
            raise DataError(f"input: text {place} has {len(one)} tokens, and at most {encoder.longest} are possible")
        if wrong := [token for token in one if token >= words]:
            raise DataError(f"input: token {wrong[0]} is none of the model's; possible are 0 to {words - 1}")
    return [list(one) for one in found]


def cut(vector: "Tensor", dimensions: int | None) -> "Tensor":
    """The first numbers of a vector, scaled to length 1 (Kusupati et al., NeurIPS 2022, arXiv:2205.13147, trains for
    that); all of them, as they are, where no number is asked for.

    Raises:
        DataError: it has fewer.
    """
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        raise DataError(f"dimensions: {dimensions} asked for, and the model's vectors have {len(vector)}")
    first = vector[:dimensions]
    length: Tensor = first.norm().clamp(min=1e-12)
    return first / length


def written(vector: "Tensor", asked: EmbeddingRequest) -> list[float] | str:
    """A vector as numbers, or as the base64 of their float32 in little-endian order."""
    values = vector.float().numpy()
    if asked.encoding_format == "float":
        return [float(value) for value in values]
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")
