"""What clients may send: the OpenAI API for language models, the Open Inference Protocol v2 for everything else.

A field that is not listed is refused by name, never dropped: a client that asks for something must not believe that
it was heard. Fields of the OpenAI API that are listed with a single possible value are those whose neutral value
clients like to send.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 16
MAX_STOPS = 16
MAX_BIASES = 1024

Text = Annotated[str, Field(max_length=4_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(max_length=256)]
Token = Annotated[int, Field(ge=0)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Wire(BaseModel):
    """Exactly the listed fields, of exactly the listed types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Wire):
    """`include_usage`: one more chunk at the end, with the token counts."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


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
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=MAX_BIASES)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[list[Token]], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


class TextPart(Wire):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class Message(Wire):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Name | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Wire):
    """Plain text is the only format so far."""

    type: Literal["text"]


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None


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
    """`binary_data_output`: send all outputs as bytes behind the JSON."""

    binary_data_output: bool = False


class InferRequest(Wire):
    """POST /v2/models/{model}/infer."""

    id: Name | None = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=256)]
    outputs: Annotated[list[OutputTensor], Field(max_length=256)] = []
