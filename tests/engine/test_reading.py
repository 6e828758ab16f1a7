"""What the model expects in the place of a prompt's own tokens, against one forward pass of transformers."""

from typing import Any

import pytest
import torch

from lissom.engine import Engine, Sampling, Sequence
from lissom.engine import schedule as schedules
from lissom.engine.pages import PAGE

ENDS = 1e-3  # of a log-probability: the same numbers, added up in another order


@pytest.fixture(scope="module")
def prompt(tokenizer: Any) -> list[int]:
    text = "Once upon a time there was a little dog. He liked to run in the park with his friends and play all day."
    return list(tokenizer(4 * text).input_ids)


@pytest.fixture(scope="module")
def expected(model: Any, prompt: list[int]) -> torch.Tensor:
    """The oracle: log-probabilities after each token of the prompt."""
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0].double().log_softmax(-1)


def check(sequence: Sequence, prompt: list[int], expected: torch.Tensor, alternatives: int) -> None:
    assert [choice.token for choice in sequence.read] == prompt[1:]
    for choice, token, row in zip(sequence.read, prompt[1:], expected, strict=False):
        assert choice.logprob == pytest.approx(float(row[token]), abs=ENDS)
        best = row.topk(alternatives)
        torch.testing.assert_close(
            torch.tensor([logprob for _, logprob in choice.top], dtype=torch.double), best.values, rtol=0, atol=ENDS
        )


@pytest.mark.parametrize("chunk", [7, 512])
@pytest.mark.parametrize("read", [5, 64])
def test_the_tokens_of_a_prompt_are_expected_as_transformers_does(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    expected: torch.Tensor,
    chunk: int,
    read: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedules, "READ", read)
    engine = Engine(model, tokenizer, max_tokens_in_cache=1024, prefill_chunk=chunk)
    plain = Sampling(temperature=0, max_tokens=4)
    asked = Sampling(temperature=0, max_tokens=4, prompt_logprobs=3)
    first, *rest = engine.generate([prompt, prompt[:20], prompt], plain)  # the cache knows all of it by now
    several = [engine.add(one, asked) for one in (prompt, prompt[:20])] + [engine.add(prompt, plain)]
    while any(one.finish is None for one in several):
        engine.step()
    check(several[0], prompt, expected, 3)
    check(several[1], prompt[:20], expected, 3)
    assert [one.generated for one in several] == [one.generated for one in (first, *rest)]
    assert several[0].reused == 0
    assert not several[2].read


def test_what_was_read_before_pages_ran_out_is_not_read_twice(
    model: Any, tokenizer: Any, prompt: list[int], expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "READ", 16)
    short = prompt[: 2 * PAGE]
    engine = Engine(model, tokenizer, max_tokens_in_cache=6 * PAGE, prefill_chunk=16)
    asked = Sampling(temperature=0, max_tokens=3 * PAGE, ignore_eos=True, prompt_logprobs=1)
    both = [engine.add(short, asked), engine.add(short, asked)]
    while any(one.finish is None for one in both):
        engine.step()
    assert engine.schedule.preemptions > 0
    for one in both:
        check(one, short, expected, 1)
    assert both[0].generated == both[1].generated


def test_a_prompt_of_one_token_has_nothing_to_be_expected(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, max_tokens_in_cache=1024)
    (one,) = engine.generate([[5]], Sampling(max_tokens=1, prompt_logprobs=2))
    assert one.read == []


@pytest.mark.parametrize("speculate", ["always", "off"])
def test_where_nothing_is_to_be_written_a_prompt_is_read_and_that_is_all(
    model: Any, tokenizer: Any, prompt: list[int], expected: torch.Tensor, speculate: str
) -> None:
    engine = Engine(model, tokenizer, max_tokens_in_cache=96, prefill_chunk=32, max_batch=3, speculate=speculate)
    asked, silent = Sampling(max_tokens=0, prompt_logprobs=2), Sampling(max_tokens=0)
    whole = prompt[: engine.context]  # which leaves no room for a token more
    assert len(whole) == 96
    given = [(whole, asked), (prompt[:9], silent), ([5], asked), (prompt[:9], silent), (prompt[:20], Sampling())]
    several = [engine.add(*one) for one in given]
    while any(one.finish is None for one in several):
        engine.step()
    check(several[0], whole, expected, 2)
    assert [(one.generated, one.text, one.finish, one.pages) for one in several[:4]] == [([], "", "length", [])] * 4
    assert several[4].generated
    assert not engine.busy
