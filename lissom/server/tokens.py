"""Tokens of a text or a chat, and back: for clients that count before they ask."""

import asyncio
from typing import Annotated, Self

from fastapi import APIRouter, Response
from pydantic import Field, model_validator

from lissom.server.failures import say
from lissom.server.language import Languages, served
from lissom.server.wire import MAX_LISTED, Message, Name, Text, Token, Told, Wire


class TokenizeRequest(Wire):
    """POST /tokenize (a route of vLLM): a text, or a chat as it is written out."""

    model: Name
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_LISTED)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Told | None = None
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

        def encode() -> list[int]:
            if asked.messages is None:
                return language.encode(asked.prompt or "", special=asked.add_special_tokens)
            return language.encode_chat(
                [message.turn for message in asked.messages],
                answered=asked.add_generation_prompt,
                continued=asked.continue_final_message,
                told=asked.chat_template_kwargs or {},
            )

        tokens = await asyncio.to_thread(encode)
        spelt = [language.spell(token) for token in tokens] if asked.return_token_strs else None
        found = {"count": len(tokens), "max_model_len": language.worker.engine.context, "tokens": tokens}
        return say(200, {**found, "token_strs": spelt})

    @router.post("/detokenize")
    async def detokenize(asked: DetokenizeRequest) -> Response:
        language = served(languages, asked.model)
        return say(200, {"prompt": await asyncio.to_thread(language.decode, asked.tokens)})

    return router
