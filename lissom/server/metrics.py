"""Counters and histograms in the Prometheus text format, version 0.0.4. Used from the event loop only.

What gateways and dashboards look for has the names that vLLM gave it; what is ours alone begins with lissom.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Labels = tuple[str, ...]
MODEL: Labels = ("model_name",)


class Counter:
    """Something that only grows, for each combination of label values."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._values: dict[Labels, float] = defaultdict(float)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Count `amount` more."""
        self._values[labels] += amount

    def lines(self) -> Iterator[str]:
        """The counter as text."""
        yield from _head(self.name, self.text, "counter")
        for values, value in sorted(self._values.items()):
            yield f"{self.name}{_labels(self.labels, values)} {value:g}"


class Histogram:
    """How often a duration fell below each bound, for each combination of label values."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._counts: dict[Labels, list[int]] = defaultdict(lambda: [0] * (len(SECONDS) + 1))
        self._sums: dict[Labels, float] = defaultdict(float)

    def observe(self, seconds: float, *labels: str) -> None:
        """Record one duration."""
        self._counts[labels][bisect_left(SECONDS, seconds)] += 1
        self._sums[labels] += seconds

    def lines(self) -> Iterator[str]:
        """The histogram as text; each bucket includes those below it."""
        yield from _head(self.name, self.text, "histogram")
        for values, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip([f"{s:g}" for s in SECONDS] + ["+Inf"], counts, strict=True):
                total += count
                yield f"{self.name}_bucket{_labels((*self.labels, 'le'), (*values, bound))} {total}"
            yield f"{self.name}_sum{_labels(self.labels, values)} {self._sums[values]:g}"
            yield f"{self.name}_count{_labels(self.labels, values)} {total}"


class Metrics:
    """All that the server counts."""

    def __init__(self) -> None:
        self.requests = Counter("lissom_requests_total", "Requests answered.", ("route", "code"))
        self.prompt_tokens = Counter("vllm:prompt_tokens_total", "Tokens of prompts accepted.", MODEL)
        self.generated_tokens = Counter("vllm:generation_tokens_total", "Tokens generated.", MODEL)
        self.finished = Counter(
            "vllm:request_success_total", "Sequences that ended, by why they did.", (*MODEL, "finished_reason")
        )
        self.first_token = Histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", MODEL)
        self.next_token = Histogram(
            "vllm:inter_token_latency_seconds", "From one token of a sequence to its next.", MODEL
        )
        self.last_token = Histogram("vllm:e2e_request_latency_seconds", "From arrival to the end of a sequence.", MODEL)
        self.inference = Histogram("lissom_inference_seconds", "One run of a model that is no language model.", MODEL)

    def render(self, now: Mapping[str, Mapping[str, float]]) -> str:
        """Everything as text; `now` are values of this moment by name and model, those called a total ever growing."""
        lines = [line for metric in vars(self).values() for line in metric.lines()]
        for name, values in now.items():
            lines.append(f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}")
            lines += [f"{name}{_labels(MODEL, (model,))} {value:g}" for model, value in values.items()]
        return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _labels(names: Labels, values: Labels) -> str:
    escaped = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for value in values)
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True)) + "}"
