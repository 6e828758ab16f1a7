"""The search, start to end: what is chosen was certified, on examples of its own, in the order fixed beforehand."""

import copy
import dataclasses
import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from lissom.artifact import load, open_folder, read_manifest
from lissom.calibrate import token_windows
from lissom.engine.lower import lower
from lissom.errors import DataError, LissomError, RecipeError
from lissom.estimate import certify
from lissom.evaluate import metric
from lissom.evaluate.tasks.continuation import LIKELIEST, encode
from lissom.files import plain
from lissom.progress import Progress
from lissom.search import Result, optimize, trying
from lissom.search.split import split
from lissom.types import Budget, Recipe

Examples = tuple[Tensor, Tensor]
INT8 = Recipe.of({"name": "int8", "steps": [{"technique": "rtn", "bits": 8}]})
INT4 = Recipe.of({"name": "int4", "steps": [{"technique": "gptq", "bits": 4, "group": 32}]})
RUINED = Recipe.of({"name": "ruined", "steps": [{"technique": "magnitude", "sparsity": 0.99}]})


def test_the_smallest_that_passed_is_chosen(result: Result) -> None:
    assert result.verdict == "PASS"
    assert result.best is not None
    assert result.best.certificate is result.certificate
    passed = [point for point in result.points if point.verdict == "PASS"]
    assert result.best.point in passed
    assert result.best.point.nbytes == min(point.nbytes for point in passed)
    assert result.smallest is not None
    assert result.fastest is not None
    assert result.smallest.point == result.best.point
    assert result.fastest.point in passed
    assert result.best.point.note.startswith("the smallest and the ")


def test_the_points_begin_with_the_original_and_say_why_one_was_not_taken(result: Result) -> None:
    assert [point.name for point in result.points] == ["original", "int8", "int4", "ruined"]
    original, ruined = result.points[0], result.points[3]
    assert original.drop.value == 0
    assert original.bits_per_weight == 32
    assert ruined.verdict == ""
    assert "on the data for choosing" in ruined.note
    assert all(point.nbytes < original.nbytes for point in result.points[1:])
    assert all(point.verdict or point.note for point in result.points[1:])


def test_what_is_saved_is_what_was_certified(
    result: Result, classifier: nn.Module, examples: Examples, tmp_path: Path
) -> None:
    assert result.best is not None
    folder = result.best.save(tmp_path / "best")
    manifest = read_manifest(folder)
    assert manifest["certificate"]["verdict"] == "PASS"
    assert manifest["certificate"]["n"] == result.best.certificate.n
    assert manifest["recipe"] == result.best.recipe.as_dict()
    assert [point["name"] for point in manifest["report"]["points"]] == [point.name for point in result.points]
    stored = (folder / "model.safetensors").read_bytes()
    assert len(stored) - 8 - int.from_bytes(stored[:8], "little") == result.best.point.nbytes
    loaded = load(folder)
    one, other = load(result.best.save(tmp_path / "again")), lower(copy.deepcopy(loaded))
    with torch.no_grad():
        assert torch.equal(loaded(examples[0]), one(examples[0]))
    # The certificate is of the kernels: it can be had again from the folder and the same examples.
    lots = split(examples, {metric("accuracy"): result.budget})
    accuracy = metric("accuracy")
    scores = [accuracy.scores(model, lots.certification) for model in (classifier, other)]
    seen = result.best.certificate.n  # until the verdict was clear
    assert seen < len(scores[0])
    again = certify(scores[0][:seen], scores[1][:seen], result.budget, planned=lots.units)
    assert plain(again) == manifest["certificate"]


def test_the_model_is_left_as_it_was(classifier: nn.Module, examples: Examples) -> None:
    before = copy.deepcopy(classifier.state_dict())
    optimize(classifier, examples, Budget(max_drop=0.05), recipes=[INT8])
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert [type(part) for part in classifier.children()] == [nn.Linear, nn.ReLU, nn.Linear]


def test_nothing_inside_the_budget_is_a_result_too(classifier: nn.Module, examples: Examples) -> None:
    result = optimize(classifier, examples, Budget(max_drop=0.02), recipes=[RUINED])
    assert result.best is None
    assert result.certificate is None
    assert result.verdict == "FAIL"


def test_a_candidate_that_cannot_be_compared_is_reported_and_not_fatal(examples: Examples) -> None:
    class Fragile(nn.Module):
        """Divides by what it hears of the input that it hears least of, which pruning makes nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            heard: Tensor = self.layer(torch.eye(32)).abs().sum(1)
            answers: Tensor = self.layer(x)
            return answers / heard.amin()

    result = optimize(Fragile(), examples, Budget(max_drop=0.05), prefer="size", recipes=[RUINED, INT8])
    assert list(result.failed) == ["ruined"]
    assert result.failed["ruined"]
    assert [point.name for point in result.points] == ["original", "int8"]
    assert result.verdict == "PASS"
    with pytest.raises(DataError, match="no candidate could be compared"):
        optimize(Fragile(), examples, Budget(max_drop=0.05), recipes=[RUINED])


def test_a_metric_of_ones_own_is_a_function(classifier: nn.Module, examples: Examples) -> None:
    def sure(model: nn.Module, batch: Any) -> Tensor:
        probabilities: Tensor = model(batch[0]).softmax(1)
        return probabilities.gather(1, batch[1].unsqueeze(1)).squeeze(1)

    result = optimize(classifier, examples, {sure: Budget(max_drop=0.02)}, recipes=[INT8], prefer="size")
    assert result.metric == "sure"
    assert result.verdict == "PASS"
    assert result.points[1].quality.value > 0.8


def test_of_several_metrics_all_budgets_must_hold(classifier: nn.Module, examples: Examples) -> None:
    """What is good enough by one metric is not chosen where it breaks another; each has its certificate."""
    loose, none = Budget(max_drop=0.9), Budget(max_drop=0.3)
    budgets: dict[str, Budget] = {"accuracy": loose, "kl": none}
    alone = optimize(classifier, examples, loose, prefer="size", recipes=[INT8, RUINED])
    both = optimize(classifier, examples, budgets, prefer="size", recipes=[INT8, RUINED])
    assert alone.best is not None
    assert alone.best.point.name == "ruined"
    assert both.best is not None
    assert both.best.point.name == "int8"
    assert (both.metric, both.budget, both.budgets) == ("accuracy", loose, budgets)
    (ruined,) = (point for point in both.points if point.name == "ruined")
    assert ruined.verdict == ""
    assert "of kl on the data for choosing" in ruined.note
    assert ruined.others["kl"].drop.value > 0.3
    assert both.points[0].others["kl"].drop.value == 0
    assert both.certificate is not None
    assert {name: part.max_drop for name, part in both.certificate.parts.items()} == {"accuracy": 0.9, "kl": 0.3}
    assert {part.verdict for part in both.certificate.parts.values()} == {both.verdict} == {"PASS"}


def test_clusters_are_counted_once(classifier: nn.Module, examples: Examples) -> None:
    clusters = torch.arange(2400) // 6
    result = optimize(
        classifier, examples, Budget(max_drop=0.05), prefer="size", recipes=[INT8], clusters=clusters.flip(0)
    )
    assert result.certificate is not None
    assert result.certificate.n <= 200
    assert result.verdict == "PASS"


def test_a_language_model_is_scored_on_examples_of_another_kind(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text calibrates and tells distances, questions choose and certify."""
    monkeypatch.setattr(trying, "ROUNDS", 3)
    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    text = (demo_folder / "stories.txt").read_text(encoding="utf-8")
    windows = token_windows(text, tokenizer, 24)[:20]
    words = ("dog", "ball", "tree", "park", "mom")
    choices = encode(tokenizer, ["Lily saw the"] * 40, [[f" {word}" for word in words]] * 40, [0, 1] * 20)
    recipe = Recipe.of({"name": "int8", "steps": [{"layers": "model.layers.*", "technique": "rtn", "bits": 8}]})
    budgets = {LIKELIEST: Budget(max_drop=0.2)}
    result = optimize(demo_folder, windows, budgets, examples=choices, prefer="size", recipes=[recipe])
    assert result.metric == "accuracy of the likeliest"
    assert result.points[1].quality.n == 15
    assert result.points[1].kl is not None
    assert result.points[1].kl.n == 12
    assert result.best is not None
    assert result.best.certificate.n <= 25


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prefer": "beauty"}, "prefer: 'beauty' is none of size, latency, both"),
        ({"target": "tpu"}, "tpu"),
        ({"budget": {"bleu": Budget()}}, "metric: 'bleu' is none of accuracy, perplexity"),
        ({"budget": Budget(max_drop=0.0001)}, r"2400 examples are too few .* at least \d+ are needed"),
        ({"budget": {"kl": Budget(), metric("kl"): Budget()}}, "kl, kl name a metric twice"),
        ({"budget": {"kl": Budget(relative=True)}}, "kl: the original's own is 0"),
        ({"clusters": torch.zeros(2400)}, r"clusters: found \[2400\] of float32, where an integer for each of 2400"),
        ({"clusters": torch.arange(2400) // 100}, "24 clusters of examples are too few"),
        ({"recipes": []}, "no candidates"),
        ({"recipes": [INT8, INT8]}, "two candidates are called 'int8'"),
        ({"recipes": [dataclasses.replace(INT8, name="original")]}, "called 'original'"),
        ({"recipes": [dataclasses.replace(INT8, name="")]}, "needs a name"),
    ],
)
def test_what_cannot_be_searched_is_said_first(
    classifier: nn.Module, examples: Examples, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(LissomError, match=message):
        optimize(classifier, examples, **given)


def test_a_recipe_that_does_not_fit_is_the_users_mistake(classifier: nn.Module, examples: Examples) -> None:
    wrong = Recipe.of({"name": "wrong", "steps": [{"technique": "gptq", "group": 48}]})
    with pytest.raises(RecipeError, match="group=48 does not divide 32"):
        optimize(classifier, examples, recipes=[wrong])


def test_a_language_model_is_searched_saved_and_opened(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "ROUNDS", 3)
    text = (demo_folder / "stories.txt").read_text(encoding="utf-8")
    windows = token_windows(text, AutoTokenizer.from_pretrained(demo_folder), 24)[:44]
    blocks, ends = "model.layers.*", {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8}
    recipes = [
        Recipe.of({"name": "int8", "steps": [{"layers": blocks, "technique": "rtn", "bits": 8}, ends]}),
        Recipe.of({"name": "../int2", "steps": [{"layers": blocks, "technique": "rtn", "bits": 2, "group": 32}, ends]}),
    ]
    told: list[Progress] = []
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    result = optimize(demo_folder, windows, Budget(max_drop=0.05), prefer="size", recipes=recipes, progress=told.append)
    assert "../int2: compress" in map(str, told)
    assert result.metric == "perplexity"
    assert result.best is not None
    assert result.best.point.name == "int8"
    assert 8 < result.best.point.bits_per_weight < 8.5
    opened = open_folder(result.best.save(tmp_path / "out"))
    assert opened.manifest["certificate"]["verdict"] == "PASS"
    perplexity = metric("perplexity")
    lots = split(windows, {perplexity: Budget(max_drop=0.05)})
    found = perplexity.summary(perplexity.scores(lower(opened.model), lots.selection))
    assert math.isclose(found.value, result.best.point.quality.value, rel_tol=1e-9)
    assert [path.name for path in scratch.iterdir()]
    del result
    gc.collect()
    assert list(scratch.iterdir()) == []  # the candidates that were not chosen are gone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_a_target_is_where_the_candidates_are_measured(
    classifier: nn.Module, examples: Examples, demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model on the CPU is measured on the GPU; it stays where it is, and what is saved opens on the CPU."""
    monkeypatch.setattr(trying, "ROUNDS", 3)
    found = optimize(classifier, examples, Budget(max_drop=0.02), target="cuda", prefer="size", recipes=[INT8, INT4])
    assert {part.device.type for part in classifier.parameters()} == {"cpu"}
    assert found.best is not None
    assert found.target == "cuda"
    opened = load(found.best.save(tmp_path / "module"))
    assert {part.device.type for part in opened.buffers()} == {"cpu"}
    text = (demo_folder / "stories.txt").read_text(encoding="utf-8")
    windows = token_windows(text, AutoTokenizer.from_pretrained(demo_folder), 24)[:44]
    recipe = Recipe.of({"name": "int8", "steps": [{"layers": "model.layers.*", "technique": "rtn", "bits": 8}]})
    seen = torch.cuda.memory_allocated()
    told = optimize(demo_folder, windows, Budget(max_drop=0.05), target="cuda", prefer="size", recipes=[recipe])
    assert told.best is not None
    assert torch.cuda.max_memory_allocated() > seen
    assert told.points[0].latency.value > 0
