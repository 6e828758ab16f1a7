"""Whether an endpoint serves a model: what it writes, beside what the model finds likely.

Any server of OpenAI's completions will do, of whatever engine. What it draws at temperature 1 from its own q tells how
far that is from the model's p, in the mean over what it draws:

    E_q[ log q(x) - log p(x) ] = KL(q ‖ p)

so that its texts, and the log-probabilities that it sends with them, are enough. Each request is an example of the
certificate. At temperature 0 it should write what the model finds likeliest. A text is judged up to the first token
that its spelling does not tell, as parts of a character do not; neither that token nor what follows counts.

Shapes: t tokens that were written.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lissom.errors import DataError
from lissom.estimate import Certificate, Estimate, mean_estimate, median_estimate
from lissom.evaluate.language import predict
from lissom.evaluate.metric import metric
from lissom.types import Budget

PATIENCE_S = 300
WHOLE: dict[str, Any] = {"top_k": 0, "min_p": 0.0}  # else some servers draw from the likeliest tokens only


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came of a request: tokens as the endpoint spells them, their log-probabilities, and seconds."""

    prompt: Sequence[int]
    pieces: Sequence[str]
    logprobs: Sequence[float]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was found of an endpoint.

    `kl` is KL(endpoint ‖ model) in nats per token, `likeliest` the share of tokens written at temperature 0 that the
    model finds likeliest. `failed` has what became of requests without an answer.
    """

    certificate: Certificate
    kl: Estimate
    likeliest: Estimate
    largest: float
    seconds: Estimate
    tokens_per_s: float
    failed: Sequence[str]


class Endpoint:
    """A server of OpenAI's completions.

    Args:
        url: where it is, with or without /v1.
        name: the model to ask for; by default its first one.
        key: sent as a bearer's.
    """

    def __init__(self, url: str, name: str | None = None, key: str | None = None) -> None:
        self.base = url.rstrip("/").removesuffix("/v1")
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.whole = WHOLE
        try:
            self.name = name or str(self.ask("/v1/models")["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise DataError(f"{self.base}/v1/models names no model; give one by name") from None

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that it answers.

        Raises:
            DataError: nobody answers, or with an error.
        """
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.base + path, data, self.headers), timeout=PATIENCE_S
            ) as a:
                return json.load(a)
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            raise DataError(f"{self.base}{path} answers {error.code}: {' '.join(said.split())}") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.base}{path} does not answer: {error}") from None

    def write(self, prompt: Sequence[int], tokens: int, temperature: float, seed: int) -> Written:
        """What it writes after a prompt.

        Raises:
            DataError: it does not, or sends no log-probabilities.
        """
        begun = time.perf_counter()
        asked = {"model": self.name, "prompt": list(prompt), "max_tokens": tokens, "temperature": temperature}
        found = self.ask("/v1/completions", {**asked, "seed": seed, "logprobs": 1, "top_p": 1.0, **self.whole})
        seconds = time.perf_counter() - begun
        try:
            told = found["choices"][0].get("logprobs") or {}
            if told.get("content"):  # as in chats
                told = {name: [one[key] for one in told["content"]] for name, key in SPELLED.items()}
            pieces, logprobs = list(told["tokens"]), [float(one) for one in told["token_logprobs"]]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise DataError(
                f"{self.base} sends no log-probabilities with its completions; start it so that it does"
            ) from None
        return Written(prompt=prompt, pieces=pieces, logprobs=logprobs, seconds=seconds)

    def draws_from_all(self, prompt: Sequence[int]) -> bool:
        """Ask it to draw from all tokens; where it does not take that, it is left out from now on.

        Raises:
            DataError: it does not answer either way.
        """
        try:
            self.write(prompt, 1, 1.0, 0)
        except DataError:
            self.whole = {}
            self.write(prompt, 1, 1.0, 0)
        return bool(self.whole)


SPELLED = {"tokens": "token", "token_logprobs": "logprob"}


class Judge:
    """The model that an endpoint is to serve.

    Args:
        model: as the engine runs it.
        tokenizer: its own.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model = model
        spelled = [tokenizer.decode([number]) for number in range(len(tokenizer))]
        self.numbers = {text: number for number, text in reversed(list(enumerate(spelled)))}
        self.unsure = {text for text in spelled if "\ufffd" in text}  # parts of a character: several are spelled so

    @torch.inference_mode()
    def seen(self, written: Written) -> tuple[np.ndarray, np.ndarray]:
        """log q - log p of each token that was written, and whether it is the likeliest.

        A token that cannot be told from its spelling ends them.
        """
        found = list[int]()
        for piece in written.pieces:
            if piece in self.unsure or piece not in self.numbers:
                break
            found.append(self.numbers[piece])
        if not found:
            return np.empty(0), np.empty(0)
        tokens = torch.tensor([[*written.prompt, *found]])
        own = predict(self.model, tokens)[0, len(written.prompt) - 1 :].float().log_softmax(-1)
        log_p = own.gather(1, tokens[0, len(written.prompt) :, None])[:, 0]
        log_q = np.array(written.logprobs[: len(found)], dtype=float)
        return log_q - log_p.double().numpy(), (own.argmax(1) == tokens[0, len(written.prompt) :]).numpy()


def verify(
    endpoint: Endpoint,
    judge: Judge,
    prompts: Sequence[Sequence[int]],
    budget: Budget,
    *,
    tokens: int = 32,
    at_once: int = 4,
) -> Verified:
    """Ask an endpoint each prompt twice, at temperatures 1 and 0, and see whether it is the model that answers.

    Raises:
        DataError: none was answered.
    """
    endpoint.draws_from_all(prompts[0])
    asked = [(prompt, tokens, temperature, seed) for seed, prompt in enumerate(prompts) for temperature in (1.0, 0.0)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        answers = list(threads.map(lambda one: answered(endpoint, *one), asked))
    took = time.perf_counter() - begun
    failed = [one for one in answers if isinstance(one, str)]
    drawn, likely = ([one for one in answers[first::2] if isinstance(one, Written)] for first in (0, 1))
    apart = [gaps for gaps, _ in map(judge.seen, drawn) if gaps.size]
    same = [alike for _, alike in map(judge.seen, likely) if alike.size]
    if len(apart) < 2 or not same:
        raise DataError(f"{endpoint.base}: too few answers to judge by; the first failure: {(failed or ['none'])[0]}")
    far = np.array([gaps.mean() for gaps in apart])
    return Verified(
        certificate=metric("kl").certify(np.zeros_like(far), -far, budget),
        kl=mean_estimate(far, unit="nats"),
        likeliest=mean_estimate(np.array([alike.mean() for alike in same])),
        largest=float(max(np.abs(gaps).max() for gaps in apart)),
        seconds=median_estimate([one.seconds for one in (*drawn, *likely)], unit="s"),
        tokens_per_s=sum(len(one.pieces) for one in (*drawn, *likely)) / took,
        failed=failed,
    )


def answered(endpoint: Endpoint, prompt: Sequence[int], tokens: int, temperature: float, seed: int) -> Written | str:
    """What an endpoint writes, or why it does not."""
    try:
        return endpoint.write(prompt, tokens, temperature, seed)
    except DataError as error:
        return str(error)
