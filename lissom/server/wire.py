"""What clients may send: the OpenAI API for language models, the Open Inference Protocol v2 for everything else.

A field that is not listed is refused by name, never dropped: a client that asks for something must not believe that
it was heard. Fields of the OpenAI API that are listed with a single possible value are those whose neutral value
clients like to send.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Json, model_validator

MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TOOLS = 128
MAX_LISTED = 1024

Text = Annotated[str, Field(max_length=4_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(max_length=256)]
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Token = Annotated[int, Field(ge=0)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Told = Annotated[dict[Name, bool | int | float | Name], Field(max_length=MAX_STOPS)]
NoTools = Annotated[list[Any], Field(max_length=0)]


class Wire(BaseModel):
    """Exactly the listed fields, of exactly the listed types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Wire):
    """`include_usage`: one more chunk at the end, with the token counts."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] | None = None


class Format(Wire):
    """What the text must be."""

    @property
    @abstractmethod
    def grammars(self) -> dict[str, Any]:
        """The same, by the kind of grammar that says so."""


class PlainFormat(Format):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]

    @property
    def grammars(self) -> dict[str, Any]:
        """What the text must be, by the kind of grammar that says so."""
        return {"json": {"type": "object"}} if self.type == "json_object" else {}


class JsonSchema(Wire):
    """A schema, which is always kept, `strict` or not."""

    name: Name
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: Text | None = None
    strict: bool | None = None


class SchemaFormat(Format):
    """JSON that keeps a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def grammars(self) -> dict[str, Any]:
        """What the text must be, by the kind of grammar that says so."""
        return {"json": self.json_schema.schema_}


class StructuredOutputs(Format):
    """What the text must be, in one of four ways (a field of vLLM)."""

    json_: Annotated[dict[str, Any] | Text | None, Field(alias="json")] = None
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=MAX_LISTED)] | None = None
    grammar: Text | None = None

    @property
    def grammars(self) -> dict[str, Any]:
        """What the text must be, by the kind of grammar that says so."""
        return self.model_dump(by_alias=True, exclude_none=True)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.grammars) != 1:
            raise ValueError("give one of json, regex, choice and grammar")
        return self


class Generation(Wire):
    """What a chat and a completion have in common."""

    model: Name
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=MAX_LISTED)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=0, le=100)] = 0
    timeout: Annotated[float, Field(gt=0, le=86_400)] | None = None
    user: Name | None = None

    @model_validator(mode="after")
    def _told_at_once(self) -> Self:
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs: they come with the whole answer; leave out stream or them")
        return self


class CompletionRequest(Generation):
    """POST /v1/completions; with `max_tokens` 0 nothing is written behind the prompt."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    prompt: (
        Text
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[list[Token]], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Literal[1] | None = None
    echo: bool = False
    suffix: None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise ValueError("max_tokens: with 0 there is nothing to answer; add echo, or ask for 1 or more")
        return self


class TextPart(Wire):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


def turn(role: str, content: str | list[Any]) -> dict[str, Any]:
    """A turn of a chat, its content, or the text of its parts, as one string; a developer speaks as the system."""
    said = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": "system" if role == "developer" else role, "content": said}


class CalledFunction(Wire):
    """What was called, and its arguments, which come as JSON."""

    name: Name
    arguments: Json[dict[str, Any]]


class ToolCall(Wire):
    """A call that the assistant made, given back."""

    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Wire):
    """One turn of a chat; a tool answers the call of an id."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Name | None = None
    refusal: None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_call_id: Name | None = None

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates know it."""
        calls = {} if self.tool_calls is None else {"tool_calls": [call.model_dump() for call in self.tool_calls]}
        answers = {} if self.tool_call_id is None else {"tool_call_id": self.tool_call_id}
        return {**turn(self.role, self.content or ""), **calls, **answers}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise ValueError("content is missing; only an assistant that calls tools may leave it out")
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls are an assistant's")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError("tool_call_id goes with the role tool, and with no other")
        return self


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_LISTED)]


class Written(Wire):
    """How a chat is written out; the variables of `chat_template_kwargs` are the template's own."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Told | None = None


class Function(Wire):
    """Something that can be called; `parameters` is the schema of its arguments, which those keep that are `strict`."""

    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Wire):
    """A tool."""

    type: Literal["function"]
    function: Function

    @property
    def shown(self) -> dict[str, Any]:
        """As chat templates know it."""
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class OnlyName(Wire):
    """A function, by its name."""

    name: Name


class NamedTool(Wire):
    """The tool that must be called."""

    type: Literal["function"]
    function: OnlyName


def check_tools(names: Sequence[str], choice: str | OnlyName | None) -> None:
    """See that tools of these names can be told apart, and that a choice among them can be kept.

    Raises:
        ValueError: they cannot, or it cannot.
    """
    if len(set(names)) < len(names):
        raise ValueError("tools: two of them have the same name")
    if isinstance(choice, OnlyName) and choice.name not in names:
        raise ValueError(f"tool_choice: {choice.name!r} is none of the tools")
    if choice in ("required", "any") and not names:
        raise ValueError(f"tool_choice: {choice}, but there are no tools")


class ChatRequest(Generation, Written):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @property
    def functions(self) -> list[Function]:
        """What may be called."""
        return [] if self.tool_choice == "none" else [tool.function for tool in self.tools or ()]

    @model_validator(mode="after")
    def _named(self) -> Self:
        choice = self.tool_choice.function if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        check_tools([tool.function.name for tool in self.tools or ()], choice)
        return self


class TensorParameters(Wire):
    """`binary_data_size`: the tensor's bytes follow the JSON; `binary_data`: send the output so."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = None
    binary_data: bool = False


class InputTensor(Wire):
    """A tensor, in `data` (flat or nested, row-major) or behind the JSON."""

    name: Name
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=16)]
    datatype: Name
    parameters: TensorParameters = TensorParameters()
    data: list[Any] | None = None


class OutputTensor(Wire):
    """An output that is wanted."""

    name: Name
    parameters: TensorParameters = TensorParameters()


class InferParameters(Wire):
    """`binary_data_output`: send all outputs as bytes behind the JSON; `timeout`: microseconds that it may wait."""

    binary_data_output: bool = False
    timeout: Annotated[int, Field(ge=1)] | None = None


class InferRequest(Wire):
    """POST /v2/models/{model}/infer."""

    id: Name | None = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=256)]
    outputs: Annotated[list[OutputTensor], Field(max_length=256)] = []
