"""`lissom certify`, and tasks from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tiny = Callable[..., Path]
Run = Callable[..., Any]


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    """What is asked of a model that answers at random: the last words of a few sentences."""
    words = ("dog", "ball", "tree", "park", "mom")
    lines = [json.dumps({"text": f"Lily {verb} the {word}"}) for verb in ("saw", "had") for word in words]
    (tmp_path / "lambada.jsonl").write_text("\n".join(lines * 10))
    return tmp_path / "lambada.jsonl"


def test_a_model_keeps_the_budget_of_itself(run: Run, demo_folder: Path, text: Path) -> None:
    common = (demo_folder, "--original", demo_folder, "--data", text, "--length", 32)
    done = run("certify", *common, "--budget", "perplexity=2%", "--budget", "agreement=10%", "--json")
    certificate = json.loads(done.out)["certificate"]
    assert (done.code, certificate["verdict"]) == (0, "PASS")
    assert {name: part["max_drop"] for name, part in certificate["parts"].items()} == {
        "perplexity": 0.02,
        "agreement": 0.1,
    }
    assert certificate["parts"]["perplexity"]["drop"]["value"] == 0
    short = run("certify", *common, "--examples", 5)
    assert short.code == 1
    assert short.out.startswith("certificate NEED MORE (15 more examples): drop")


def test_a_ruined_model_fails(run: Run, tiny: Tiny, text: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("steps: [{technique: magnitude, sparsity: 0.99}]")
    source, out = tiny("llama"), tmp_path / "out"
    assert run("compress", source, "--recipe", tmp_path / "recipe.yaml", "--out", out).code == 0
    done = run("certify", out, "--original", source, "--data", text, "--length", 16, "--budget", "agreement=10%")
    assert done.code == 1
    assert "FAIL" in done.out


def test_tasks_are_evaluated_and_certified(run: Run, demo_folder: Path, passages: Path) -> None:
    found = json.loads(run("evaluate", demo_folder, "--data", passages, "--task", "lambada", "--json").out)
    assert found["exact match"]["n"] == 100
    assert 0 <= found["exact match"]["value"] <= 1
    common = (demo_folder, "--original", demo_folder, "--data", passages, "--task", "lambada", "--json")
    certificate = json.loads(run("certify", *common, "--budget", "5%").out)["certificate"]
    assert (certificate["verdict"], certificate["n"]) == ("PASS", 72)  # 70 are the fewest, and 8 are run at once


def test_what_cannot_be_certified_is_said(run: Run, demo_folder: Path, passages: Path, text: Path) -> None:
    common = ("certify", demo_folder, "--original", demo_folder)
    wrong = run(*common, "--data", passages, "--task", "squad")
    assert (wrong.code, wrong.error.count("\n")) == (2, 1)
    assert "'squad' is none of blimp" in wrong.error
    assert "--budget 'much' is no fraction" in run(*common, "--data", text, "--length", 16, "--budget", "kl=much").error
    twice = run(*common, "--data", text, "--length", 16, "--budget", "kl=1%", "--budget", "kl=5%")
    assert "a metric has one budget" in twice.error
    other = run(*common, "--data", passages, "--task", "lambada", "--budget", "kl=1%")
    assert "with --task the budget is the task's" in other.error
    assert "'bleu' is none of" in run(*common, "--data", text, "--length", 16, "--budget", "bleu=1%").error
