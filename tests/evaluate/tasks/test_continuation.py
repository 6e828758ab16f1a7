import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lissom.errors import DataError
from lissom.evaluate.tasks.continuation import GREEDY, LIKELIEST, LIKELIEST_BY_LENGTH, encode, follow, pair


@pytest.fixture(scope="module")
def tokenizer(demo_folder):
    return AutoTokenizer.from_pretrained(demo_folder)


@pytest.fixture(scope="module")
def model(demo_folder):
    return AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()


CONTEXTS = ["Once upon a", "Lily went to the park. She saw a big dog and ran to her ", ""]
ENDINGS = [[" time", " refrigerator"], ["mom", "telescope. It was made of glass"], ["The girl was happy.", "Girl the."]]


def alone(model, tokenizer, context, ending):
    """The definition, one continuation at a time: its log likelihood, and what greedy decoding says in its place."""
    ids, begin = pair(tokenizer, context, ending)
    total = 0.0
    for place in range(begin, len(ids)):
        total += model(torch.tensor([ids[:place]])).logits[0, -1].float().log_softmax(-1)[ids[place]].item()
    said = list(ids[:begin])
    while len(said) < len(ids):
        said.append(int(model(torch.tensor([said])).logits[0, -1].argmax()))
    return total, said == ids


@torch.no_grad()
def test_a_batch_says_what_one_at_a_time_would(model, tokenizer):
    found = follow(model, encode(tokenizer, CONTEXTS, ENDINGS, [0, 0, 0]))
    for row, (context, endings) in enumerate(zip(CONTEXTS, ENDINGS, strict=True)):
        for column, ending in enumerate(endings):
            likelihood, said = alone(model, tokenizer, context, ending)
            assert found[row, column, 0].item() == pytest.approx(likelihood, rel=1e-4)
            assert bool(found[row, column, 1]) == said
    assert found[0, 0, 1] == 1  # "Once upon a time" is what it says itself


def test_spaces_between_belong_to_the_continuation(tokenizer):
    ids, begin = pair(tokenizer, "She ran to her ", "mom")
    assert tokenizer.decode(ids[:begin]) == "She ran to her"
    assert tokenizer.decode(ids[begin:]) == " mom"
    assert pair(tokenizer, "She ran to her", " mom") == (ids, begin)


def test_an_empty_context_is_the_token_that_begins_a_text(tokenizer):
    ids, begin = pair(tokenizer, "", "The girl")
    assert (ids[0], begin) == (tokenizer.bos_token_id, 1)


def test_choosing_by_length_divides_by_characters():
    found = torch.tensor([[[-4.0, 0.0], [-6.0, 0.0]], [[-4.0, 1.0], [-6.0, 0.0]]])
    batch = {"scored": torch.ones(1), "lengths": torch.tensor([[4.0, 12.0], [4.0, 4.0]])}
    batch["labels"] = torch.tensor([1, 0])
    assert LIKELIEST.score(found, batch).tolist() == [False, True]
    assert LIKELIEST_BY_LENGTH.score(found, batch).tolist() == [True, True]
    assert GREEDY.score(found, batch).tolist() == [False, True]


def test_the_metric_scores_each_example(model, tokenizer):
    lot = encode(tokenizer, CONTEXTS, ENDINGS, [0, 0, 0])
    with torch.no_grad():
        expected = LIKELIEST.score(follow(model, lot), lot)
    assert LIKELIEST.scores(model, lot).tolist() == expected.double().tolist()


def test_examples_that_cannot_be_scored_are_named(model, tokenizer):
    with pytest.raises(DataError, match="same number"):
        encode(tokenizer, ["a", "b"], [[" c"], [" d", " e"]], [0, 0])
    with pytest.raises(DataError, match="no token of its own"):
        pair(tokenizer, "Once", "")
    with pytest.raises(DataError, match="read from a file"):
        LIKELIEST.scores(model, torch.zeros(2, 4, dtype=torch.long))
