"""With guesses every text is the one without, whoever guesses; and guesses are made where they pay."""

from dataclasses import replace
from itertools import count, cycle
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lissom.engine import Engine, Grammar, Sampling, Sequence
from lissom.engine.costs import WARM, Line
from lissom.engine.pages import PAGE, Pages
from lissom.engine.schedule import Schedule
from lissom.engine.sequence import Choice
from lissom.engine.speculate import AGAIN, MOST, Chance, Offer, Speculation, worthwhile
from lissom.engine.text import Detokenizer
from lissom.errors import DataError

TEXTS = ("Once upon a time", "The dog ran. The dog ran. The", "Tom and Lily and Tom and", "A")
GREEDY = Sampling(temperature=0.0, max_tokens=30, ignore_eos=True)
MANNERS = {
    "greedy": GREEDY,
    "to the end": Sampling(temperature=0.0, max_tokens=60),
    "seeded": Sampling(seed=3, max_tokens=25),
    "cold": Sampling(seed=4, temperature=0.4, top_p=0.9, top_k=20, min_p=0.02, max_tokens=30),
    "penalties": replace(GREEDY, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
    "biased": replace(GREEDY, logit_bias={7: 3.0}, min_tokens=20),
    "grammar": Sampling(temperature=0.0, max_tokens=40, grammar=Grammar(kind="regex", text="([a-z]+ ){5}end")),
    "stop strings": replace(GREEDY, stop=("ed ", "day")),
    "logprobs": replace(GREEDY, logprobs=3),
    "one token": replace(GREEDY, max_tokens=1),
    "two tokens": replace(GREEDY, max_tokens=2),
}


def stranger(vocabulary: int = 2048) -> Any:
    """A model that says something else."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": vocabulary}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **heads)).eval()


@pytest.fixture(scope="module")
def drafts(model: Any) -> dict[str, Any]:
    return {"from the text": None, "always right": model, "always wrong": stranger()}


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text).input_ids for text in TEXTS]


def engine(model: Any, tokenizer: Any, **options: Any) -> Engine:
    return Engine(model, tokenizer, **{"max_tokens_in_cache": 2048, "speculate": "always", **options})


def told(sequences: list[Sequence]) -> list[Any]:
    return [(one.generated, one.text, one.finish, [choice.token for choice in one.choices]) for one in sequences]


def probabilities(sequences: list[Sequence]) -> list[float]:
    return [logprob for one in sequences for choice in one.choices for _, logprob in choice.top]


@pytest.mark.parametrize("manner", MANNERS)
def test_every_text_is_the_one_without_guesses(
    model: Any, tokenizer: Any, drafts: dict[str, Any], prompts: list[list[int]], manner: str
) -> None:
    plain = engine(model, tokenizer, speculate="off").generate(prompts, MANNERS[manner])
    for draft in drafts.values():
        one = engine(model, tokenizer, draft=draft)
        found = one.generate(prompts, MANNERS[manner])
        assert told(found) == told(plain)
        assert probabilities(found) == pytest.approx(probabilities(plain), abs=1e-4)
        assert (one.busy, one.usage) == (False, 0.0)


@pytest.mark.parametrize("options", [{"max_tokens_in_cache": 80}, {"max_batch": 2, "prefill_chunk": 3}], ids=str)
def test_also_with_few_pages_or_in_small_chunks(
    model: Any, tokenizer: Any, drafts: dict[str, Any], prompts: list[list[int]], options: dict[str, int]
) -> None:
    plain = engine(model, tokenizer, speculate="off").generate(prompts, GREEDY)
    for draft in drafts.values():
        one = engine(model, tokenizer, draft=draft, **options)
        assert told(one.generate(prompts, GREEDY)) == told(plain)
        assert (one.schedule.preemptions > 0) == ("max_tokens_in_cache" in options)
        assert one.usage == 0


@pytest.mark.parametrize("cache", ["bfloat16", "int8", "int4"])
def test_also_with_a_smaller_cache(model: Any, tokenizer: Any, prompts: list[list[int]], cache: str) -> None:
    plain = engine(model, tokenizer, speculate="off", cache=cache).generate(prompts[:2], GREEDY)
    assert told(engine(model, tokenizer, cache=cache, draft=model).generate(prompts[:2], GREEDY)) == told(plain)


def test_a_prompt_that_begins_as_another_did_takes_it_over_with_nothing_but_what_was_accepted(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    one, plain = engine(model, tokenizer, draft=stranger()), engine(model, tokenizer, speculate="off")
    talk = prompts[0]
    for turn in range(3):
        (found,), (expected,) = one.generate([talk], GREEDY), plain.generate([talk], GREEDY)
        assert found.generated == expected.generated
        talk = [*talk, *found.generated, *prompts[turn]]
    assert one.schedule.reused_tokens >= plain.schedule.reused_tokens > 0


def test_a_draft_that_is_right_gives_many_tokens_in_a_step_and_one_that_is_wrong_gives_one(
    model: Any, tokenizer: Any, drafts: dict[str, Any], prompts: list[list[int]]
) -> None:
    steps = {}
    for name, draft in drafts.items():
        one = engine(model, tokenizer, draft=draft)
        sequence, steps[name] = one.add(prompts[0], GREEDY), 0
        while one.busy:
            one.step()
            steps[name] += 1
        assert len(sequence.generated) == 30
        assert 0 <= one.speculation.accepted <= one.speculation.guessed
    assert steps["always right"] <= 4 < steps["from the text"]
    assert steps["always wrong"] > 15


def test_cancelling_between_steps_gives_all_pages_back(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    one = engine(model, tokenizer, draft=model)
    kept, dropped = one.add(prompts[0], GREEDY), one.add(prompts[3], GREEDY)
    one.step()
    one.step()
    one.cancel(dropped)
    assert (dropped.pages, dropped.guesses, len(dropped.generated)) == ([], [], MOST + 2)
    while one.busy:
        one.step()
    assert (kept.finish, one.usage) == ("length", 0)


@pytest.mark.parametrize("cost", [0.1, 100.0])
def test_whatever_the_clock_says_the_text_is_the_same(
    model: Any, tokenizer: Any, prompts: list[list[int]], cost: float
) -> None:
    plain = engine(model, tokenizer, speculate="off").generate(prompts, GREEDY)
    ticks = cycle([0.0, cost, cost + 1, 0.5])
    one = engine(model, tokenizer, speculate="auto", draft=model, clock=lambda: next(ticks))
    assert told(one.generate(prompts, GREEDY)) == told(plain)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"speculate": "often"}, "speculate='often' is not possible; choose auto, off, always"),
        ({"speculate": "off", "draft": True}, "a draft is given, but speculate='off'"),
    ],
)
def test_what_contradicts_itself_is_refused(model: Any, tokenizer: Any, options: dict[str, Any], reason: str) -> None:
    options = {**options, **({"draft": model} if "draft" in options else {})}
    with pytest.raises(DataError, match=reason):
        engine(model, tokenizer, **options)


def test_a_draft_of_another_vocabulary_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the draft has 100 tokens in its vocabulary, the model 2048"):
        engine(model, tokenizer, draft=stranger(vocabulary=100))


def line(base: float, slope: float) -> Line:
    found = Line()
    for rows in (1, 2) * WARM:
        found.see(rows, base + slope * rows)
    return found


def offers(*rates: float, most: int = MOST, found: bool = True) -> list[Offer]:
    return [Offer(sequence(), Chance(rate, 1.0), most, (1,) * most if found else ()) for rate in rates]


def sequence(prompt: tuple[int, ...] = (5, 6, 5, 6, 5, 6), limit: int = 10_000) -> Sequence:
    return Sequence(
        prompt=prompt,
        sampling=Sampling(),
        limit=limit,
        detokenizer=Detokenizer(lambda tokens: "x" * len(tokens)),
        random=np.random.default_rng(0),
    )


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("slope", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("drafted", [None, 0.05, 0.5])
def test_as_many_guesses_as_give_the_most_tokens_a_second(rate: float, slope: float, drafted: float | None) -> None:
    """The oracle: the expected rate at every number of guesses."""
    dear = 0.0 if drafted is None else drafted

    def tokens_per_second(guesses: int) -> float:
        return sum(rate**depth for depth in range(guesses + 1)) / (1 + slope * (1 + guesses) + dear * guesses)

    draft = None if drafted is None else line(drafted, 0.0)
    (chosen,) = worthwhile(offers(rate, found=drafted is None), line(1.0, slope), draft)
    assert chosen == max(range(MOST + 1), key=tokens_per_second)


def test_each_sequence_gets_as_many_as_it_is_worth_and_no_more_than_there_are() -> None:
    mixed = [*offers(0.95, 0.02, 0.7), *offers(0.9, most=2)]
    best, none, fair, few = worthwhile(mixed, line(1.0, 0.3), None)
    assert best > fair > none == 0
    assert few == 2


def test_a_draft_that_is_too_slow_leaves_what_is_found_in_the_text() -> None:
    mixed = [*offers(0.9), *offers(0.9, found=False)]
    found, drafted = worthwhile(mixed, line(1.0, 0.1), line(50.0, 0.0))
    assert (found > 2, drafted) == (True, 0)


def test_chances_follow_what_happened_of_late() -> None:
    chance = Chance()
    for _ in range(50):
        chance.see(4, 4)
    assert chance.rate > 0.99
    one = chance.of_one()
    assert one.rate == pytest.approx(chance.rate)
    for _ in range(50):
        one.see(4, 0)
    assert max(one.rate, chance.rate) < 0.05


def guesses_pass_by_pass(slope: float, passes: int) -> list[int]:
    """A sequence that repeats itself for ever while passes cost 1 second and `slope` for each row more."""
    schedule = Schedule(Pages(1000), max_batch=1, chunk=100)
    speculation = Speculation(schedule, draft=None, mode="auto")
    one = sequence()
    schedule.add(one)
    made = list[int]()
    for _ in range(passes):
        slices = speculation.guess(schedule.plan())
        made.append(len(one.guesses))
        for _ in range(len(one.guesses) + 1):  # all are right
            one.accept(Choice(token=5 + one.length % 2, logprob=0.0), end=())
        speculation.learn(slices, 1 + slope * sum(piece.count for piece in slices))
        schedule.record(slices)
    assert one.length < 1000 * PAGE
    return made


def test_guesses_are_made_where_they_pay_and_else_tried_now_and_then() -> None:
    assert set(guesses_pass_by_pass(slope=0.01, passes=60)[10:]) == {MOST}
    dear = guesses_pass_by_pass(slope=50.0, passes=200)
    assert [at for at, made in zip(count(), dear, strict=False) if made][-3:] == [AGAIN * n for n in (4, 5, 6)]
    assert max(dear[2 * AGAIN :]) == 1
