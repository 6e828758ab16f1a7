"""What can be served, and the limits it is served within."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lissom.models.form import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client can ask of the server at most.

    `waiting` counts sequences beyond those that run; `grace_seconds` is how long requests may go on after the signal
    to stop; a model that makes no progress for `stall_seconds` while it has work is not ready.
    """

    text_bytes: int = 2 * 2**20
    tensor_bytes: int = 64 * 2**20
    body_seconds: float = 30.0
    waiting: int = 64
    grace_seconds: float = 20.0
    stall_seconds: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageService:
    """A causal language model under a name. `evidence` is its certificate, shown to clients as it is.

    `cache` says how keys and values are held: "auto", "float", "bfloat16", "int8" or "int4". A `draft` of the same
    vocabulary guesses tokens ahead; without one, and with `speculate` "auto", what the text repeats is guessed.
    """

    model: LanguageModel
    tokenizer: Any
    name: str
    evidence: Mapping[str, Any] | None = None
    max_tokens_in_cache: int = 16_384
    max_batch: int = 16
    cache: str = "auto"
    draft: LanguageModel | None = None
    speculate: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorService:
    """Any other model: tensors in, tensors out.

    `signature` is {"inputs": [{"name", "datatype", "shape"}], "outputs": [...]} in the datatypes of the Open
    Inference Protocol, with -1 for a dimension that may vary; the inputs are passed by position in that order.
    """

    module: Callable[..., Any]
    name: str
    signature: Mapping[str, Any]
    evidence: Mapping[str, Any] | None = None


Service = LanguageService | TensorService
