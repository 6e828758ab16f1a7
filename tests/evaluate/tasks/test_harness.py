"""Tasks of lm-evaluation-harness, beside its own class for transformers on the same model, example by example."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from lissom.artifact import open_folder
from lissom.engine.lower import lower
from lissom.errors import DataError
from lissom.evaluate import certify_models
from lissom.evaluate.tasks.harness import harness
from lissom.types import Budget

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness; pip install 'lissom[lm-eval]'")
pytestmark = pytest.mark.filterwarnings("default")  # its own are none of ours

OWN = """\
task: own_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
"""
ROLLING = """\
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
UNTIL = """\
doc_to_text: "{{text[:20]}}"
doc_to_target: "{{text[20:]}}"
generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: low, filter: [{function: lowercase}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: false}]
"""


@pytest.fixture(scope="module")
def model(demo_folder):
    return lower(open_folder(demo_folder).model)


@pytest.fixture(scope="module")
def tokenizer(demo_folder):
    return AutoTokenizer.from_pretrained(demo_folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory, demo_folder):
    """A folder with data of HellaSwag's and LAMBADA's form, and tasks of one's own."""
    folder = tmp_path_factory.mktemp("tasks")
    sentences = [line.strip() for line in (demo_folder / "stories.txt").read_text(encoding="utf-8").split(".")]
    sentences = [each for each in sentences if 30 < len(each) < 90 and "\n" not in each][:48]
    questions = [
        {
            "activity_label": "A story",
            "ctx_a": first,
            "ctx_b": "then",
            "endings": [second, third[::-1], "[step] the end", second.upper()],
            "label": number % 4,
        }
        for number, (first, second, third) in enumerate(
            zip(sentences[::3], sentences[1::3], sentences[2::3], strict=True)
        )
    ]
    lines(folder / "questions.jsonl", questions)
    lines(folder / "passages.jsonl", [{"text": each} for each in sentences[:24]])
    for kind, more in (("loglikelihood_rolling", ROLLING), ("generate_until", UNTIL)):
        own = OWN.format(kind=kind, file=folder / "passages.jsonl") + more
        (folder / f"{kind}.yaml").write_text(own, encoding="utf-8")
    return folder


def lines(file, objects):
    file.write_text("\n".join(map(json.dumps, objects)), encoding="utf-8")


@pytest.fixture
def beside(model, tokenizer):
    """What the library's own class for transformers gets of the model, document by document."""
    pytest.importorskip("accelerate", reason="the library's class for transformers needs accelerate")
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    def graded(task, figure, chosen=None):
        found = evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), {task.task_name: task})
        samples = found["samples"][task.task_name]
        return [one[figure] for one in samples if chosen in (None, one["filter"])]

    return graded


def of(name, tokenizer, data):
    """The examples and the metric, and the task that it is made from."""
    examples, kind = harness(name, tokenizer, data)
    return examples, kind, kind.output.task


@pytest.mark.parametrize(
    ("name", "figure"), [("hellaswag", "acc"), ("hellaswag:acc_norm", "acc_norm"), ("lambada_openai:acc", "acc")]
)
def test_questions_are_graded_as_by_the_library(name, figure, model, tokenizer, place, beside):
    data = place / ("questions.jsonl" if "hella" in name else "passages.jsonl")
    examples, kind, task = of(name, tokenizer, data)
    found = kind.scores(model, examples)
    assert 0 < found.sum() < len(found)
    assert found.tolist() == beside(task, figure)


def test_likelihoods_are_the_librarys(model, tokenizer, place, beside):
    examples, kind, task = of("lambada_openai", tokenizer, place / "passages.jsonl")
    assert kind.logarithms
    assert kind.scores(model, examples) == pytest.approx(beside(task, "perplexity"), abs=1e-3)


def test_texts_longer_than_the_context_are_read_in_windows(model, tokenizer, place, beside, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 8)
    examples, kind, task = of("own_loglikelihood_rolling:word_perplexity", tokenizer, place)
    expected = [likelihood / words for likelihood, words in beside(task, "word_perplexity")]
    assert kind.scores(model, examples) == pytest.approx(expected, abs=1e-3)


def test_answers_are_generated_and_filtered_as_by_the_library(model, tokenizer, place, beside):
    for chosen in ("whole", "low"):
        examples, kind, task = of(f"own_generate_until:exact_match,{chosen}", tokenizer, place)
        assert kind.scores(model, examples).tolist() == beside(task, "exact_match", chosen)


def test_what_is_generated_is_what_the_library_generates(model, tokenizer, place):
    pytest.importorskip("accelerate", reason="the library's class for transformers needs accelerate")
    from lm_eval.models.huggingface import HFLM

    from lissom.evaluate.tasks.answers import generate

    task = of("own_generate_until:exact_match", tokenizer, place)[2]
    task.build_all_requests()
    with torch.no_grad():
        said = generate(model, tokenizer, [request.args for request in task.instances])
    assert said == HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).generate_until(task.instances)
    assert len(set(said)) > 1


def test_a_task_is_certified(model, tokenizer, place):
    examples, kind = harness("hellaswag", tokenizer, place / "questions.jsonl")
    found = certify_models(model, model, examples, {kind: Budget(max_drop=0.5)})
    assert (found.verdict, found.drop.value) == ("PASS", 0)


def test_what_is_no_task_is_said(model, tokenizer, place):
    with pytest.raises(DataError, match="no such task; did you mean 'hellaswag'"):
        harness("helaswag", tokenizer)
    with pytest.raises(DataError, match=r"'f2' is no mean .* those are: acc, acc_norm"):
        harness("hellaswag:f2", tokenizer, place / "questions.jsonl")
    with pytest.raises(DataError, match="its data cannot be read"):
        harness("hellaswag", tokenizer, place / "none.jsonl")
    examples, kind = harness("own_generate_until:exact_match,high", tokenizer, place)
    with pytest.raises(DataError, match="its filters are whole, low, not 'high'"):
        kind.scores(model, examples)
