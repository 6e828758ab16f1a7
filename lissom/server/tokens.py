"""Tokens of a text or a chat, and back: for clients that count before they ask."""

import asyncio
from typing import Annotated, Any, Self

from fastapi import APIRouter, Response
from pydantic import Field, model_validator

from lissom.server.failures import say
from lissom.server.language import Languages, served
from lissom.server.openai import chat_tokens
from lissom.server.wire import Messages, Name, Text, Token, Wire, Written


class TokenizeRequest(Written):
    """POST /tokenize (a route of vLLM): a text, or a chat as it is written out."""

    model: Name
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give one of prompt and messages")
        return self


class DetokenizeRequest(Wire):
    """POST /detokenize."""

    model: Name
    tokens: Annotated[list[Token], Field(max_length=1_000_000)]


def routes(languages: Languages) -> APIRouter:
    """The two routes, as vLLM has them."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> Response:
        language = served(languages, asked.model)

        def found() -> dict[str, Any]:
            if asked.messages is None:
                tokens = language.encode(asked.prompt or "", special=asked.add_special_tokens)
            else:
                tokens = chat_tokens(language, asked.messages, asked)
            spelt = [language.spell(token) for token in tokens] if asked.return_token_strs else None
            context = language.worker.context
            return {"count": len(tokens), "max_model_len": context, "tokens": tokens, "token_strs": spelt}

        return say(200, await asyncio.to_thread(found))

    @router.post("/detokenize")
    async def detokenize(asked: DetokenizeRequest) -> Response:
        language = served(languages, asked.model)
        return say(200, {"prompt": await asyncio.to_thread(language.decode, asked.tokens)})

    return router
