"""What clients may send to the Responses API of OpenAI: exactly the listed fields, or they are refused by name."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Json, model_validator

from lissom.server.wire import (
    MAX_LISTED,
    MAX_TOOLS,
    Format,
    Function,
    JsonSchema,
    Name,
    NoTools,
    OnlyName,
    PlainFormat,
    Text,
    Wire,
    check_tools,
    turn,
)


class NamedSchema(JsonSchema, Format):
    """JSON that keeps a schema, as /v1/responses writes it."""

    type: Literal["json_schema"]

    @property
    def grammars(self) -> dict[str, Any]:
        """What the text must be, by the kind of grammar that says so."""
        return {"json": self.schema_}


class ResponseText(Wire):
    """A part of a message of /v1/responses, as it is given or as it was answered; only text is understood."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: NoTools | None = None
    logprobs: NoTools | None = None


class ResponseInput(Wire):
    """One turn of /v1/responses; `id` and `status` are those of an answer that is given back."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ResponseText]
    id: Name | None = None
    status: Name | None = None
    phase: None = None

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates know it."""
        return turn(self.role, self.content)


class ResponseCall(Wire):
    """A call that was answered, given back."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: Json[dict[str, Any]]
    id: Name | None = None
    status: Name | None = None

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates know it."""
        called = {"name": self.name, "arguments": self.arguments}
        return {**turn("assistant", ""), "tool_calls": [{"id": self.call_id, "type": "function", "function": called}]}


class ResponseResult(Wire):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Name
    output: Text
    id: Name | None = None
    status: Name | None = None

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates know it."""
        return {**turn("tool", self.output), "tool_call_id": self.call_id}


class ResponseTool(Function):
    """A tool."""

    type: Literal["function"]

    @property
    def shown(self) -> dict[str, Any]:
        """As chat templates know it."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type", "strict"})}


class ResponseToolName(OnlyName):
    """The tool that must be called."""

    type: Literal["function"]


class ResponseFormat(Wire):
    """What the text must be."""

    format: Annotated[PlainFormat | NamedSchema, Field(discriminator="type")] | None = None


Item = ResponseCall | ResponseResult | ResponseInput


class ResponsesRequest(Wire):
    """POST /v1/responses; nothing is stored, so nothing can be referred to."""

    model: Name
    input: (
        Text
        | Annotated[list[ResponseCall | ResponseResult | ResponseInput], Field(min_length=1, max_length=MAX_LISTED)]
    )
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    text: ResponseFormat | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None
    include: NoTools | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolName | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: Annotated[dict[Name, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    user: Name | None = None

    @property
    def turns(self) -> list[dict[str, Any]]:
        """As chat templates know them; calls belong to what the assistant said before them, or to one another."""
        given = [turn("user", self.input)] if isinstance(self.input, str) else list[dict[str, Any]]()
        for own in self.input if isinstance(self.input, list) else ():
            if isinstance(own, ResponseCall) and given and given[-1]["role"] == "assistant":
                given[-1].setdefault("tool_calls", []).extend(own.turn["tool_calls"])
            else:
                given.append(own.turn)
        return given if self.instructions is None else [turn("system", self.instructions), *given]

    @property
    def offered(self) -> list[ResponseTool]:
        """The tools that may be called."""
        return [] if self.tool_choice == "none" else self.tools or []

    @model_validator(mode="after")
    def _named(self) -> Self:
        check_tools([tool.name for tool in self.tools or ()], self.tool_choice)
        return self
