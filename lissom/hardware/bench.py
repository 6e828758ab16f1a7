"""How fast a module is here on one batch; and an answer of a language model in two parts, to be timed apart.

The model and its inputs are where the target is, and the model is run in the mode that it is in (set it to eval).

Shapes: n prompts, t tokens of a prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lissom.calibrate import Batch, call
from lissom.estimate import Estimate
from lissom.hardware.measure import interleave, peak_memory
from lissom.hardware.target import check_target


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a module runs one batch; `peak_bytes` is the most that the process has held since it began."""

    latency_ms: Estimate
    examples_per_s: Estimate
    peak_bytes: int


@torch.inference_mode()
def bench_module(model: nn.Module, example: Batch, *, rounds: int = 15, target: str = "cpu") -> Speed:
    """The speed of a module on one batch.

    Raises:
        LissomError: this machine has no such target.
    """
    check_target(target)
    latency = interleave({"call": lambda: call(model, example)}, rounds=rounds, target=target)["call"]
    return Speed(latency_ms=latency, examples_per_s=per_second(examples(example), latency), peak_bytes=peak_memory())


class Answer:
    """One answer of a language model, in two parts that are timed apart."""

    def __init__(self, model: nn.Module, prompt: Int[Tensor, "n t"], new_tokens: int) -> None:
        self.model, self.prompt, self.new_tokens = model, prompt, new_tokens
        self.said: Any = None

    def read(self) -> None:
        """Prefill: the whole prompt at once."""
        self.said = self.model(input_ids=self.prompt, use_cache=True, logits_to_keep=1)

    def write(self) -> None:
        """Decode: a token at a time, after the prompt was read."""
        for _ in range(self.new_tokens):
            token = self.said.logits[:, -1:].argmax(-1)
            self.said = self.model(input_ids=token, past_key_values=self.said.past_key_values, use_cache=True)


def examples(batch: Batch) -> int:
    """How many examples a batch holds."""
    first = (
        next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0] if isinstance(batch, tuple) else batch
    )
    return len(first)


def per_second(amount: int, time_ms: Estimate, unit: str = "/s") -> Estimate:
    """A rate from a time."""
    return time_ms.through(lambda ms: 1000 * amount / ms, unit=unit)
