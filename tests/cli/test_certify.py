"""`lissom certify`, and tasks from the command line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoTokenizer, BertConfig, BertModel

from lissom.artifact import open_folder
from lissom.evaluate.tasks import sts

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
    budgets = ("--budget", "perplexity=2%", "--budget", "agreement=10%")
    done = run("certify", *common, *budgets, "--planned", 1000, "--json")
    certificate = json.loads(done.out)["certificate"]
    assert (done.code, certificate["verdict"]) == (0, "PASS")
    assert {name: part["max_drop"] for name, part in certificate["parts"].items()} == {
        "perplexity": 0.02,
        "agreement": 0.1,
    }
    assert certificate["parts"]["perplexity"]["drop"]["value"] == 0
    assert certificate["parts"]["agreement"]["method"].endswith(", 1,000 planned")
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


TOKENS = 12


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A text encoder with random weights."""
    from lissom import save

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=2048
    )
    example = {name: torch.ones(2, TOKENS, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    return save(BertModel(config, add_pooling_layer=False), tmp_path / "encoder", example=example)


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """Pairs of sentences, and how alike they are."""
    words = ("dog", "ball", "tree", "park", "mom", "sun")
    pairs = [(a, b) for a in words for b in words]
    lines = [f"Tim saw the {a}.,Lily has a {b} and a {a} too.,{number % 7}" for number, (a, b) in enumerate(pairs)]
    (tmp_path / "sts.csv").write_text("\n".join(lines))
    return tmp_path / "sts.csv"


def test_pairs_of_sentences_are_scored_by_a_saved_encoder(
    run: Run, encoder: Path, rated: Path, tmp_path: Path, demo_folder: Path
) -> None:
    """From sentences, as its tokenizer reads them, and from their tokens; as ranking their cosines tells."""
    lot = sts.read(rated, AutoTokenizer.from_pretrained(demo_folder), TOKENS)
    model = open_folder(encoder).model
    with torch.no_grad():
        cosines = sts.similarity(model, lot)[:, 0]
    expected = stats.spearmanr(cosines, lot["labels"]).statistic
    np.savez(tmp_path / "sts.npz", **{name: part.numpy() for name, part in lot.items()})
    for data in ((rated, "--tokenizer", demo_folder), (tmp_path / "sts.npz",)):
        common = (encoder, "--task", "sts", "--json", "--data", *data)
        found = json.loads(run("evaluate", *common).out)
        assert found["Spearman correlation"]["value"] == pytest.approx(expected, abs=1e-6)
        certificate = json.loads(run("certify", *common, "--original", encoder).out)["certificate"]
        assert (certificate["verdict"], certificate["n"], certificate["drop"]["value"]) == ("PASS", 36, 0)


def test_an_encoder_without_a_tokenizer_is_told_what_it_needs(
    run: Run, encoder: Path, rated: Path, tmp_path: Path
) -> None:
    np.savez(
        tmp_path / "sts.npz",
        input_ids=np.ones((3, 2, 7), dtype=np.int64),
        attention_mask=np.ones((3, 2, 7), dtype=np.int64),
        labels=np.arange(3.0),
    )
    assert (
        f"7 tokens, and the model takes {TOKENS}"
        in run("evaluate", encoder, "--data", tmp_path / "sts.npz", "--task", "sts").error
    )
    done = run("evaluate", encoder, "--data", rated, "--task", "sts")
    assert done.code == 2
    assert "has no tokenizer; name the folder of one by --tokenizer" in done.error
    assert "input_ids and attention_mask [pairs, 2, tokens]" in done.error


def test_without_data_or_the_harness_it_is_said(run: Run, demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--data: give examples of lambada" in run("evaluate", demo_folder, "--task", "lambada").error
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert "pip install 'lissom[lm-eval]'" in run("evaluate", demo_folder, "--task", "lm-eval:hellaswag").error
