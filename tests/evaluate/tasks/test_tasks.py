"""The files of each task: what becomes of them, and what is said of those that are none."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from lissom.errors import DataError
from lissom.evaluate.tasks import TASKS, task
from lissom.evaluate.tasks.hellaswag import authors, six_lines


@pytest.fixture(scope="module")
def tokenizer(demo_folder):
    return AutoTokenizer.from_pretrained(demo_folder)


def written(folder, name, *lines):
    file = folder / name
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return file


def texts(tokenizer, lot):
    """What stands in a batch before each continuation, and each continuation."""
    rows = zip(lot["input_ids"].flatten(0, 1), lot["scored"].flatten(0, 1), strict=True)
    return [(tokenizer.decode(ids[: int(mask.nonzero()[0])]), tokenizer.decode(ids[mask])) for ids, mask in rows]


def test_blimp_reads_pairs_of_a_file_and_of_a_folder(tokenizer, tmp_path):
    one = {"sentence_good": "The girls run.", "sentence_bad": "The girls runs.", "field": "syntax"}
    file = written(tmp_path, "b.jsonl", one, "", one)
    lot = TASKS["blimp"].read(file, tokenizer)
    assert [said for _, said in texts(tokenizer, lot)] == ["The girls run.", "The girls runs."] * 2
    assert lot["labels"].tolist() == [0, 0]
    written(tmp_path, "a.jsonl", {**one, "sentence_good": "First."})
    folder = TASKS["blimp"].read(tmp_path, tokenizer)
    assert texts(tokenizer, folder)[0][1] == "First."
    assert len(folder["labels"]) == 3


def test_lambada_parts_the_last_word(tokenizer, tmp_path):
    file = written(tmp_path, "l.jsonl", {"text": "She gave the ball to Tim\nand then she thanked Tim"})
    lot = TASKS["lambada"].read(file, tokenizer)
    assert texts(tokenizer, lot)[0] == ("She gave the ball to Tim\nand then she thanked", " Tim")
    with pytest.raises(DataError, match="two words"):
        TASKS["lambada"].read(written(tmp_path, "w.jsonl", {"text": "word"}), tokenizer)


def test_hellaswag_is_the_same_from_both_files(tokenizer, tmp_path):
    question = {
        "activity_label": "Baking",
        "ctx_a": "A man stirs. [header] Then",
        "ctx_b": "he",
        "endings": ["sings.", "bakes [step] it.", "runs.", "flies."],
        "label": 1,
    }
    first = written(tmp_path, "h.jsonl", question)
    context = "Baking: A man stirs. Then He"
    second = written(tmp_path, "h.txt", context, "1", "sings.", "bakes it.", "runs.", "flies.")
    assert authors(first) == six_lines(second) == [(context, ["sings.", "bakes it.", "runs.", "flies."], 1)]
    lot = TASKS["hellaswag"].read(second, tokenizer)
    assert [said for _, said in texts(tokenizer, lot)] == [" sings.", " bakes it.", " runs.", " flies."]
    assert lot["lengths"].tolist() == [[6, 9, 5, 6]]
    with pytest.raises(DataError, match="no question"):
        six_lines(written(tmp_path, "h.txt", context, "7", "a", "b", "c", "d"))


def test_questions_of_ones_own(tokenizer, tmp_path):
    choice = {"context": "Two and two is", "choices": [" five", " four"], "answer": 1}
    lot = TASKS["choices"].read(written(tmp_path, "c.jsonl", choice), tokenizer)
    assert texts(tokenizer, lot) == [("Two and two is", " five"), ("Two and two is", " four")]
    assert lot["labels"].tolist() == [1]
    exact = TASKS["exact"].read(written(tmp_path, "e.jsonl", {"prompt": "Say", "answer": " hi."}), tokenizer)
    assert texts(tokenizer, exact) == [("Say", " hi.")]
    with pytest.raises(DataError, match="answer 2 is none of 0 to 1"):
        TASKS["choices"].read(written(tmp_path, "c.jsonl", {**choice, "answer": 2}), tokenizer)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "bad.jsonl:1: no JSON"),
        ([{"text": "a b"}, {"words": 1}], "bad.jsonl:2: has no 'text'; each line needs text"),
        (["[1]"], "has no 'text'"),
        ([], "no examples are in it"),
    ],
)
def test_a_file_that_is_none_is_named(tokenizer, tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        TASKS["lambada"].read(written(tmp_path, "bad.jsonl", *lines), tokenizer)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("choices", {"context": 5, "choices": [" a", " b"], "answer": 0}, "'context' is 5 where a text is needed"),
        ("choices", {"context": "x", "choices": 7, "answer": 0}, "'choices' is 7 where a list of texts"),
        ("choices", {"context": "x", "choices": [" a", 1], "answer": 0}, "where a list of texts"),
        ("choices", {"context": "x", "choices": [" a", " b"], "answer": True}, "where a whole number"),
        ("exact", {"prompt": "x", "answer": 3}, "'answer' is 3 where a text"),
        ("lambada", {"text": None}, "'text' is None where a text"),
        ("blimp", {"sentence_good": "a", "sentence_bad": []}, "'sentence_bad' is .* where a text"),
    ],
)
def test_what_stands_in_a_line_is_checked(tokenizer, tmp_path, name, line, message):
    with pytest.raises(DataError, match=message):
        TASKS[name].read(written(tmp_path, "bad.jsonl", line), tokenizer)


def test_an_ending_that_is_not_there_is_not_the_right_one(tmp_path):
    line = {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d"] * 4, "label": 9}
    with pytest.raises(DataError, match="label 9 is none of 0 to 3"):
        authors(written(tmp_path, "h.jsonl", line))
    with pytest.raises(DataError, match="no examples are in it"):
        six_lines(written(tmp_path, "empty.txt"))


def test_names_are_found():
    assert task("blimp") is TASKS["blimp"]
    with pytest.raises(DataError, match="'squad' is none of blimp, choices, exact, hellaswag, lambada, sts"):
        task("squad")


def test_real_files_are_read(tokenizer, shared, tmp_path):
    """The counts that the authors state, and what the bundled model makes of the first few."""
    lambada = TASKS["lambada"].read(shared / "data" / "lambada" / "lambada_test.jsonl", tokenizer)
    assert lambada["labels"].shape == (5153,)
    assert torch.equal(lambada["scored"].any(-1).sum(0), torch.tensor([5153]))
