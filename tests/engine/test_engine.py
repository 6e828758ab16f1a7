"""The whole engine against `generate` of transformers, one sequence at a time."""

from typing import Any

import pytest
import torch

from lissom.engine import Engine, Sampling, Sequence
from lissom.engine.pages import PAGE
from lissom.errors import DataError

TEXTS = (
    "Once upon a time",
    "The dog",
    "Lily saw a big red ball and she wanted to",
    "One day, Tom went to the park with his mom. He was very happy because the sun was out and",
    "A",
)
GREEDY = Sampling(temperature=0.0, max_tokens=40)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text).input_ids for text in TEXTS]


@pytest.fixture(scope="module")
def reference(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """The oracle."""
    return [
        model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40, do_sample=False
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


def engine(model: Any, tokenizer: Any, **options: int) -> Engine:
    return Engine(model, tokenizer, **{"max_tokens_in_cache": 2048, **options})


def generated(sequences: list[Sequence]) -> list[list[int]]:
    return [sequence.generated for sequence in sequences]


def test_alone_equals_transformers(
    model: Any, tokenizer: Any, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    one = engine(model, tokenizer)
    assert [one.generate([prompt], GREEDY)[0].generated for prompt in prompts] == reference


@pytest.mark.parametrize(("cache", "nbytes"), [("float", 4), ("bfloat16", 2)])
def test_a_token_takes_the_bytes_of_its_keys_and_values(model: Any, tokenizer: Any, cache: str, nbytes: int) -> None:
    one, config = Engine(model, tokenizer, max_tokens_in_cache=2048, cache=cache), model.config
    one.generate([[1, 2, 3]], Sampling(max_tokens=1))
    features = config.num_key_value_heads * config.head_dim
    assert one.token_bytes == 2 * config.num_hidden_layers * features * nbytes


@pytest.mark.parametrize(
    "options",
    [{}, {"prefill_chunk": 3}, {"max_batch": 2}, {"max_tokens_in_cache": 96}],
    ids=["together", "in small chunks", "two at a time", "with preemption"],
)
def test_together_equals_transformers(
    model: Any, tokenizer: Any, prompts: list[list[int]], reference: list[list[int]], options: dict[str, int]
) -> None:
    one = engine(model, tokenizer, **options)
    assert generated(one.generate(prompts, GREEDY)) == reference
    assert (one.schedule.preemptions > 0) == ("max_tokens_in_cache" in options)
    assert (one.busy, one.usage) == (False, 0.0)


@pytest.mark.parametrize("cache", ["float", "int8", "int4"])
def test_what_is_taken_from_the_cache_reads_as_if_it_were_computed(model: Any, tokenizer: Any, cache: str) -> None:
    prompt = tokenizer(" ".join(TEXTS)).input_ids
    prompts = [prompt, prompt[:-5], [*prompt, *prompt[:9]], prompt]
    alone = [Engine(model, tokenizer, max_tokens_in_cache=256, cache=cache).generate([one], GREEDY) for one in prompts]
    one = Engine(model, tokenizer, max_tokens_in_cache=2048, cache=cache)
    assert generated(one.generate(prompts, GREEDY)) == [found.generated for (found,) in alone]
    assert one.schedule.reused_tokens > len(prompt)
    before, talk = one.schedule.reused_tokens, [*prompt, *alone[0][0].generated]
    again = one.add(talk, GREEDY)  # the next turn
    one.step()
    assert one.schedule.reused_tokens - before >= len(talk) - 1 - PAGE
    assert one.usage == pytest.approx(len(again.pages) / 128)


def test_several_sequences_decode_in_one_step(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    one = engine(model, tokenizer)
    sequences = [one.add(prompt, GREEDY) for prompt in prompts]
    one.step()
    assert one.step() == sequences


def test_a_seeded_draw_does_not_depend_on_the_rest_of_the_batch(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    one = engine(model, tokenizer)
    seeded = Sampling(temperature=1.0, seed=7, max_tokens=30)
    alone = one.generate([prompts[0]], seeded)[0]
    for prompt in prompts[1:]:
        one.add(prompt, Sampling(max_tokens=25))
    assert one.generate([prompts[0]], seeded)[0].generated == alone.generated
    assert one.generate([prompts[0]], Sampling(seed=8, max_tokens=30))[0].generated != alone.generated


def test_the_text_is_the_decoded_tokens(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    for sequence in engine(model, tokenizer).generate(prompts, GREEDY):
        assert sequence.text == tokenizer.decode(sequence.generated, skip_special_tokens=True)
        assert sequence.finish == "length"


def test_a_stop_string_ends_the_text_before_itself(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    one = engine(model, tokenizer)
    free = one.generate([prompts[0]], GREEDY)[0]
    stop = free.text[20:26]
    sequence = one.add(prompts[0], Sampling(temperature=0.0, max_tokens=40, stop=(stop,)))
    while sequence.finish is None:
        one.step()
        assert free.text[: free.text.index(stop)].startswith(sequence.text)
    assert (sequence.finish, sequence.text) == ("stop", free.text[: free.text.index(stop)])


def test_an_end_token_stops_unless_it_is_ignored_or_too_early(
    model: Any, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = engine(model, tokenizer).generate([prompts[0]], GREEDY)[0].generated
    end, count = free[9], free.index(free[9]) + 1
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end, tokenizer.eos_token_id])
    one = engine(model, tokenizer)
    usual = one.generate([prompts[0]], GREEDY)[0]
    assert (usual.finish, usual.generated) == ("stop", free[:count])
    assert usual.text == tokenizer.decode(free[: count - 1])
    later = one.generate([prompts[0]], Sampling(temperature=0.0, min_tokens=count + 5, max_tokens=40))[0]
    assert end not in later.generated[: count + 5]
    assert later.generated[: count - 1] == free[: count - 1]
    ignored = one.generate([prompts[0]], Sampling(temperature=0.0, ignore_eos=True, max_tokens=40))[0]
    assert ignored.generated == free


def test_a_stop_token_ends_the_text_also_where_end_tokens_are_ignored(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    one = engine(model, tokenizer)
    free = one.generate([prompts[0]], GREEDY)[0].generated
    count = free.index(free[9]) + 1
    asked = Sampling(temperature=0.0, stop_tokens=(free[9],), ignore_eos=True, max_tokens=40)
    found = one.generate([prompts[0]], asked)[0]
    assert (found.finish, found.generated) == ("stop", free[:count])
    assert found.text == tokenizer.decode(free[: count - 1])


def test_penalties_know_prompt_and_continuation(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    """The oracle is the processor of transformers."""
    found = engine(model, tokenizer).generate(
        [prompts[3]], Sampling(temperature=0.0, max_tokens=30, repetition_penalty=1.8)
    )[0]
    prompt = torch.tensor([prompts[3]])
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=30,
        do_sample=False,
        repetition_penalty=1.8,
    )
    assert found.generated == expected[0, prompt.shape[1] :].tolist()


def test_log_probabilities_come_with_every_token(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    one = engine(model, tokenizer)
    sequence = one.generate([prompts[0]], Sampling(temperature=0.0, max_tokens=6, logprobs=2))[0]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompts[0], *sequence.generated]])).logits[0, len(prompts[0]) - 1 : -1]
    expected = logits.log_softmax(-1).topk(2)
    assert [[token for token, _ in choice.top] for choice in sequence.choices] == expected.indices.tolist()
    assert [choice.logprob for choice in sequence.choices] == pytest.approx(expected.values[:, 0].tolist(), abs=1e-4)


def test_without_max_tokens_the_context_is_the_limit(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    one = engine(model, tokenizer, max_tokens_in_cache=48)
    sequence = one.generate([prompts[0]], Sampling(temperature=0.0, ignore_eos=True))[0]
    assert (sequence.length, sequence.finish) == (48, "length")


def test_cancelling_frees_the_pages_and_keeps_the_text(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    one = engine(model, tokenizer)
    kept, dropped = one.add(prompts[0], GREEDY), one.add(prompts[1], GREEDY)
    one.step()
    one.cancel(dropped)
    assert (dropped.finish, dropped.pages, len(dropped.generated)) == ("cancelled", [], 1)
    assert one.step() == [kept]


@pytest.mark.parametrize(
    ("prompt", "sampling", "reason"),
    [
        ([], Sampling(), "a prompt is 1 or more tokens"),
        ([5, 2048], Sampling(), "from 0 to 2047"),
        ([5] * 65, Sampling(), "exceed the context of 64 tokens"),
        ([5], Sampling(stop_tokens=(2048,)), "stop_tokens and logit_bias name tokens; possible are 0 to 2047"),
        ([5], Sampling(logit_bias={-1: 1}), "possible are 0 to 2047"),
        ([5] * 60, Sampling(max_tokens=5), "60 prompt tokens and 5 new ones exceed the context of 64"),
    ],
)
def test_what_can_never_run_is_refused(
    model: Any, tokenizer: Any, prompt: list[int], sampling: Sampling, reason: str
) -> None:
    one = engine(model, tokenizer, max_tokens_in_cache=64)
    with pytest.raises(DataError, match=reason):
        one.add(prompt, sampling)
    assert not one.busy


def test_a_cache_without_room_for_a_page_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="max_tokens_in_cache=3"):
        engine(model, tokenizer, max_tokens_in_cache=3)
