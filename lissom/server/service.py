"""What can be served, and the limits it is served within."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.errors import DataError
from lissom.types import Budget

if TYPE_CHECKING:
    from lissom.models.form import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What can be asked of the server at most.

    `waiting` counts sequences beyond those that run, which are refused sooner where, by what has been measured, their
    first token would come later than `first_token_seconds`; `grace_seconds` is how long requests may go on after the
    signal to stop; a model that makes no progress for `stall_seconds` while it has work is ended, and started again if
    it is that of a folder.
    """

    text_bytes: int = 2 * 2**20
    tensor_bytes: int = 64 * 2**20
    body_seconds: float = 30.0
    waiting: int = 64
    first_token_seconds: float = 30.0
    grace_seconds: float = 20.0
    stall_seconds: float = 120.0


BUDGET = Budget(max_drop=0.1, confidence=0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """Another model, as a rule the original, that sees a `share` of the traffic beside the one that is served.

    Of a request that it sees, the disagreement is the share of places where the two would have answered otherwise
    (`Language.disagreement`, `Inference.disagreement`). When the mean of it is above the budget's `max_drop`, with the
    confidence of the budget, there is an alarm; with `rollback` the other model also takes the place of this one.

    Raises:
        DataError: the share is none, or the shadow has a shadow.
    """

    service: "Service"
    share: float = 0.05
    budget: Budget = BUDGET
    rollback: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise DataError(f"shadow: a share of {self.share} is not possible; give more than 0 and at most 1")
        if self.service.shadow is not None:
            raise DataError("shadow: it has a shadow itself; give that to the model that is served")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderService:
    """The model of a folder, or of a name on the hub, under a name, in a process of its own; `draft` is another folder.

    One whose certificate does not hold is refused, unless it may be `uncertified`. The rest is that of
    `LanguageService` or `TensorService`, whichever the folder holds.
    """

    folder: str | Path
    name: str
    max_tokens_in_cache: int = 16_384
    max_batch: int = 16
    cache: str = "auto"
    target: str = "cpu"
    draft: str | Path | None = None
    speculate: str = "auto"
    max_delay_ms: float = 0.0
    uncertified: bool = False
    shadow: Shadow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageService:
    """A causal language model in memory, under a name. `evidence` is its certificate, shown to clients as it is.

    `cache` says how keys and values are held: "auto", "float", "bfloat16", "int8" or "int4". A `draft` of the same
    vocabulary guesses tokens ahead; without one, and with `speculate` "auto", what the text repeats is guessed.
    """

    model: "LanguageModel"
    tokenizer: Any
    name: str
    evidence: Mapping[str, Any] | None = None
    max_tokens_in_cache: int = 16_384
    max_batch: int = 16
    cache: str = "auto"
    draft: "LanguageModel | None" = None
    speculate: str = "auto"
    shadow: Shadow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorService:
    """Any other model: tensors in, tensors out.

    `signature` is {"inputs": [{"name", "datatype", "shape"}], "outputs": [...]} in the datatypes of the Open
    Inference Protocol, with -1 for a dimension that may vary; the inputs are passed by position in that order. Where
    the first dimension of all may vary, requests of at most `max_batch` rows in all are run together: those that have
    come while another ran, or within `max_delay_ms` of the first.
    """

    module: Callable[..., Any]
    name: str
    signature: Mapping[str, Any]
    evidence: Mapping[str, Any] | None = None
    max_batch: int = 16
    max_delay_ms: float = 0.0
    shadow: Shadow | None = None


Service = FolderService | LanguageService | TensorService
