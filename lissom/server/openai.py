"""The OpenAI API for language models: models, completions, chat completions."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from lissom.engine import Grammar, Sampling
from lissom.errors import DataError
from lissom.server.answers import Calling, Chat, Choices, Completion, Shape
from lissom.server.calls import may_call, must_call
from lissom.server.failures import say, unknown_model
from lissom.server.language import Ask, Language, Languages, Prompts, served
from lissom.server.tools import ANYTHING, Tools, tools_of
from lissom.server.wire import ChatRequest, CompletionRequest, Format, Generation, Message, NamedTool, Written

if TYPE_CHECKING:
    from lissom.server.modules import Inference

COMPLETION_TOKENS = 16  # the API's own default for completions; a chat goes on to the end of the context


def routes(languages: Languages, modules: "Mapping[str, Inference]") -> APIRouter:
    """The routes under /v1; of the modules, the text encoders are listed beside the language models."""
    router = APIRouter(prefix="/v1")

    def cards() -> dict[str, dict[str, Any]]:
        encoders = {name: one.openai_card() for name, one in modules.items() if one.longest is not None}
        return {**{name: one.card() for name, one in languages.items()}, **encoders}

    @router.get("/models")
    async def models() -> Response:
        return say(200, {"object": "list", "data": list(cards().values())})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        every = cards()
        if name not in every:
            raise unknown_model(name, sorted(every))
        return say(200, every[name])

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
    most = COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
    texts, tokens = prompts(asked.prompt)

    def encode() -> list[list[int]]:
        return tokens or [language.encode(text) for text in texts]

    def echoes(prompts: Prompts) -> Sequence[str]:
        return texts or [language.decode(prompt) for prompt in prompts]

    return Ask(
        encode=encode,
        sampling=sampling_of(asked, most, asked.logprobs, echo=asked.echo),
        write=writing(Completion(), language, asked, asked.logprobs is not None, echoes if asked.echo else None),
        prompts=len(texts) + len(tokens),
        **how_of(asked),
    )


def chat(language: Language, asked: ChatRequest) -> Ask:
    """What POST /v1/chat/completions asks for.

    Raises:
        DataError: tools, of which the model knows none; or two ways to say what the text must be.
    """
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    functions = {one.name: one.parameters or ANYTHING for one in asked.functions}
    strict = [one.name for one in asked.functions if one.strict]
    tools = tools_of(language.tokenizer, functions, strict) if functions else None
    shown = [tool.shown for tool in asked.tools or () if tools]
    single = asked.parallel_tool_calls is False
    called = called_for(tools, asked, single=single)
    if called and (asked.response_format or asked.structured_outputs):
        raise DataError("tool_choice or strict tools and response_format: both say what the text must be; give one")
    return Ask(
        encode=lambda: [chat_tokens(language, asked.messages, asked, shown)],
        sampling=sampling_of(
            asked,
            asked.max_completion_tokens or asked.max_tokens,
            logprobs,
            called,
            ends=tools.single if tools and single and not called else (),
        ),
        write=writing(Calling(tools, asked.n or 1) if tools else Chat(), language, asked, bool(asked.logprobs)),
        **how_of(asked),
    )


def how_of(asked: Generation) -> dict[str, Any]:
    """How many continuations, in which way, how urgently, and until when."""
    return {
        "each": asked.n or 1,
        "stream": bool(asked.stream),
        "priority": asked.priority,
        "timeout": asked.timeout or inf,
    }


def called_for(tools: Tools | None, asked: ChatRequest, *, single: bool) -> Grammar | None:
    """What makes sure that tools are called, where that is asked for; else that strict ones are called rightly."""
    if tools is None:
        return None
    if asked.tool_choice in (None, "auto"):
        return may_call(tools, single=single)
    only = asked.tool_choice.function.name if isinstance(asked.tool_choice, NamedTool) else None
    return must_call(tools, only, single=single)


def chat_tokens(
    language: Language, messages: Sequence[Message], how: Written, tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """The tokens of a chat, written out as asked."""
    return language.encode_chat(
        [message.turn for message in messages],
        answered=how.add_generation_prompt,
        continued=how.continue_final_message,
        told=how.chat_template_kwargs or {},
        tools=tools,
    )


def writing(
    shape: Shape,
    language: Language,
    asked: Generation,
    logprobs: bool,
    echoes: Callable[[Prompts], Sequence[str]] | None = None,
) -> Callable[[int, Prompts], Choices]:
    """How an answer is written down in this API: with log-probabilities or without, and perhaps behind its prompt."""

    def write(count: int, prompts: Prompts) -> Choices:
        return Choices(
            shape=shape,
            model=language.name,
            count=count,
            prompts=prompts,
            each=asked.n or 1,
            echoes=echoes(prompts) if echoes else None,
            with_prompt_logprobs=asked.prompt_logprobs is not None,
            with_usage=bool(asked.stream_options and asked.stream_options.include_usage),
            continuously=bool(asked.stream_options and asked.stream_options.continuous_usage_stats),
            with_logprobs=logprobs,
            spell=language.spell,
            decode=language.decode,
            special=not asked.skip_special_tokens,
        )

    return write


def sampling_of(
    asked: Generation,
    max_tokens: int | None,
    logprobs: int | None,
    called: Grammar | None = None,
    *,
    echo: bool = False,
    ends: Sequence[str] = (),
) -> Sampling:
    """Temperature and top_p are 1 unless given: the model's own distribution, whatever its generation config says.

    Where the prompt is echoed, its tokens have log-probabilities if the others have.
    """
    of_prompt = [some for some in (asked.prompt_logprobs, logprobs if echo else None) if some is not None]
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
        stop=(*stop, *ends),
        stop_tokens=tuple(asked.stop_token_ids or ()),
        ignore_eos=asked.ignore_eos,
        skip_special_tokens=asked.skip_special_tokens,
        grammar=called or grammar_of(asked.response_format, asked.structured_outputs),
        logprobs=logprobs,
        prompt_logprobs=max(of_prompt, default=None),
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
