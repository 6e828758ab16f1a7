"""The OpenAI API for language models: models, completions, chat completions."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from lissom.engine import Grammar, Sampling
from lissom.errors import DataError
from lissom.server.answers import Chat, Choices, Completion, Shape
from lissom.server.failures import say
from lissom.server.language import Ask, Language, Languages, served
from lissom.server.wire import ChatRequest, Chatting, CompletionRequest, Format, Generation

COMPLETION_TOKENS = 16  # the API's own default for completions; a chat goes on to the end of the context


def routes(languages: Languages) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> Response:
        return say(200, {"object": "list", "data": [one.card() for one in languages.values()]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        return say(200, served(languages, name).card())

    @router.post("/completions")
    async def completions(request: Request, asked: CompletionRequest) -> Response:
        language = served(languages, asked.model)
        return await language.answer(request, completion(language, asked))

    @router.post("/chat/completions")
    async def chats(request: Request, asked: ChatRequest) -> Response:
        language = served(languages, asked.model)
        return await language.answer(request, chat(language, asked))

    return router


def completion(language: Language, asked: CompletionRequest) -> Ask:
    """What POST /v1/completions asks for."""
    texts, tokens = prompts(asked.prompt)

    def encode() -> list[list[int]]:
        return tokens or [language.encode(text) for text in texts]

    return Ask(
        encode=encode,
        sampling=sampling_of(asked, asked.max_tokens or COMPLETION_TOKENS, asked.logprobs),
        write=writing(Completion(), language, asked),
        prompts=len(texts) + len(tokens),
        each=asked.n or 1,
        stream=bool(asked.stream),
    )


def chat(language: Language, asked: ChatRequest) -> Ask:
    """What POST /v1/chat/completions asks for."""
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    return Ask(
        encode=lambda: [chat_tokens(language, asked)],
        sampling=sampling_of(asked, asked.max_completion_tokens or asked.max_tokens, logprobs),
        write=writing(Chat(), language, asked),
        each=asked.n or 1,
        stream=bool(asked.stream),
    )


def chat_tokens(language: Language, asked: Chatting) -> list[int]:
    """The tokens of a chat, as its fields say."""
    return language.encode_chat(
        [message.turn for message in asked.messages],
        answered=asked.add_generation_prompt,
        continued=asked.continue_final_message,
        told=asked.chat_template_kwargs or {},
    )


def writing(shape: Shape, language: Language, asked: Generation) -> Callable[[int, int], Choices]:
    """How an answer is written down in this API."""

    def write(count: int, read: int) -> Choices:
        return Choices(
            shape=shape,
            model=language.service.name,
            count=count,
            prompt_tokens=read,
            each=asked.n or 1,
            with_usage=bool(asked.stream_options and asked.stream_options.include_usage),
            with_logprobs=asked.with_logprobs,
            spell=language.spell,
        )

    return write


def sampling_of(asked: Generation, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """Temperature and top_p are 1 unless given: the model's own distribution, whatever its generation config says."""
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Sampling(
        temperature=1.0 if asked.temperature is None else float(asked.temperature),
        top_p=1.0 if asked.top_p is None else float(asked.top_p),
        top_k=max(asked.top_k or 0, 0),
        min_p=float(asked.min_p or 0),
        repetition_penalty=1.0 if asked.repetition_penalty is None else float(asked.repetition_penalty),
        presence_penalty=float(asked.presence_penalty or 0),
        frequency_penalty=float(asked.frequency_penalty or 0),
        logit_bias={int(token): float(bias) for token, bias in (asked.logit_bias or {}).items()},
        seed=None if asked.seed is None else asked.seed % 2**64,
        max_tokens=max_tokens,
        min_tokens=asked.min_tokens,
        stop=tuple(stop),
        stop_tokens=tuple(asked.stop_token_ids or ()),
        ignore_eos=asked.ignore_eos,
        grammar=grammar_of(asked.response_format, asked.structured_outputs),
        logprobs=logprobs,
    )


def grammar_of(*formats: Format | None) -> Grammar | None:
    """What the text must be, if anything was asked for.

    Raises:
        DataError: it is said twice.
    """
    wanted = [item for part in formats if part is not None for item in part.grammars.items()]
    if len(wanted) > 1:
        raise DataError("response_format and structured_outputs: both say what the text must be; give one")
    if not wanted:
        return None
    kind, value = wanted[0]
    return Grammar(kind=kind, text=value if isinstance(value, str) else json.dumps(value))


def prompts(prompt: str | Sequence[Any]) -> tuple[list[str], list[list[int]]]:
    """The prompts as texts or as tokens; one of the two lists is empty."""
    if isinstance(prompt, str):
        return [prompt], []
    if isinstance(prompt[0], str):
        return list(prompt), []
    return [], [list(prompt)] if isinstance(prompt[0], int) else [list(one) for one in prompt]
