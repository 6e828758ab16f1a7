"""What clients may send to the Messages API of Anthropic: exactly the listed fields, or they are refused by name."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lissom.server.wire import (
    MAX_LISTED,
    MAX_STOPS,
    MAX_TOOLS,
    Format,
    Name,
    OnlyName,
    Stop,
    Text,
    ToolName,
    Wire,
    check_tools,
    turn,
)


class CacheControl(Wire):
    """A mark where a prompt is to be kept: all of every prompt is, as long as there is room."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Wire):
    """Text in a message."""

    type: Literal["text"]
    text: Text
    cache_control: CacheControl | None = None


class ToolUse(Wire):
    """A call that the assistant made, given back."""

    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any]
    cache_control: CacheControl | None = None

    @property
    def call(self) -> dict[str, Any]:
        """As chat templates know it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.input}}


class ToolResult(Wire):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: Text | list[TextBlock] = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = None

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates know it."""
        return {**turn("tool", self.content), "tool_call_id": self.tool_use_id}


class Spoken(Wire):
    """A turn of the user: what tools gave, and text."""

    role: Literal["user"]
    content: Text | list[Annotated[TextBlock | ToolResult, Field(discriminator="type")]]

    @property
    def turns(self) -> list[dict[str, Any]]:
        """As chat templates know them: what tools gave comes first, each by itself."""
        if isinstance(self.content, str):
            return [turn("user", self.content)]
        texts = [part for part in self.content if isinstance(part, TextBlock)]
        results = [part.turn for part in self.content if isinstance(part, ToolResult)]
        return [*results, turn("user", texts)] if texts or not results else results


class Answered(Wire):
    """A turn of the assistant: text, and calls."""

    role: Literal["assistant"]
    content: Text | list[Annotated[TextBlock | ToolUse, Field(discriminator="type")]]

    @property
    def turns(self) -> list[dict[str, Any]]:
        """As chat templates know it."""
        if isinstance(self.content, str):
            return [turn("assistant", self.content)]
        said = turn("assistant", [part for part in self.content if isinstance(part, TextBlock)])
        calls = [part.call for part in self.content if isinstance(part, ToolUse)]
        return [{**said, "tool_calls": calls} if calls else said]


class MessageMetadata(Wire):
    """Who asks, which changes nothing."""

    user_id: Name | None = None


class NoThinking(Wire):
    """Thinking in secret, which no model does here."""

    type: Literal["disabled"]


class MessageTool(Wire):
    """A tool; `input_schema` is that of its arguments."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: Text | None = None
    input_schema: dict[str, Any]
    cache_control: CacheControl | None = None
    strict: bool | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """As chat templates know it."""
        told = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **told, "parameters": self.input_schema}}


class ToolChoice(Wire):
    """Whether tools are called: as the model likes, not at all, any, or the one that is named."""

    type: Literal["auto", "none", "any", "tool"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Wire):
    """POST /v1/messages/count_tokens."""

    model: Name
    messages: Annotated[
        list[Annotated[Spoken | Answered, Field(discriminator="role")]], Field(min_length=1, max_length=MAX_LISTED)
    ]
    system: Text | list[TextBlock] | None = None
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: NoThinking | None = None

    @property
    def turns(self) -> list[dict[str, Any]]:
        """As chat templates know them."""
        spoken = [one for message in self.messages for one in message.turns]
        return spoken if self.system is None else [turn("system", self.system), *spoken]

    @property
    def offered(self) -> list[MessageTool]:
        """The tools that may be called."""
        unwanted = self.tool_choice is not None and self.tool_choice.type == "none"
        return [] if unwanted else self.tools or []

    @model_validator(mode="after")
    def _named(self) -> Self:
        choice = self.tool_choice
        if choice is not None and (choice.type == "tool") != (choice.name is not None):
            raise ValueError("tool_choice: name goes with the type tool, and with no other")
        named = None if choice is None else OnlyName(name=choice.name) if choice.name else choice.type
        check_tools([tool.name for tool in self.tools or ()], named)
        return self


class TextSchema(Format):
    """JSON that keeps a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]

    @property
    def grammars(self) -> dict[str, Any]:
        """What the text must be, by the kind of grammar that says so."""
        return {"json": self.schema_}


class OutputConfig(Wire):
    """What the text must be."""

    format: TextSchema | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    output_config: OutputConfig | None = None
    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
