"""Text encoders from the command line: measured, certified and optimized on pairs of sentences with scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoTokenizer

from lissom.artifact import open_folder
from lissom.evaluate.tasks import sts

Run = Callable[..., Any]
Encoder = Callable[..., Path]
WORDS = ("dog", "ball", "tree", "park", "mom", "sun", "box", "cat", "bird", "hat")


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """Pairs of sentences, with a tab between them, and how alike they are."""
    pairs = [(a, b) for a in WORDS for b in WORDS]
    lines = [f'Tim saw the "{a}".\tLily has a {b}, and a {a} too.\t{n * 7 % 11}' for n, (a, b) in enumerate(pairs)]
    (tmp_path / "rated.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    return tmp_path / "rated.tsv"


def correlation(folder: Path, rated: Path) -> float:
    """The oracle: each sentence alone through the model, and scipy."""
    encoder, tokenizer = open_folder(folder).model, AutoTokenizer.from_pretrained(folder)
    cosines, said = [], []
    for first, second, score in sts.rated(rated):
        with torch.no_grad():
            ids = [torch.tensor([tokenizer.encode(text)]) for text in (first, second)]
            vectors = [encoder(each, torch.ones_like(each)) for each in ids]
        cosines.append(float(torch.cosine_similarity(*vectors)))
        said.append(score)
    return float(stats.spearmanr(cosines, said).statistic)


def test_a_text_encoder_reads_pairs_by_its_own_tokenizer(run: Run, text_encoder: Encoder, rated: Path) -> None:
    folder = text_encoder()
    common = (folder, "--data", rated, "--task", "sts", "--json")
    found = json.loads(run("evaluate", *common).out)["Spearman correlation"]
    assert (found["n"], found["value"]) == (100, pytest.approx(correlation(folder, rated), abs=1e-6))
    other = json.loads(run("evaluate", *common, "--tokenizer", folder).out)["Spearman correlation"]
    assert other["value"] == pytest.approx(found["value"], abs=1e-6)
    certificate = json.loads(run("certify", *common, "--original", folder).out)["certificate"]
    assert (certificate["verdict"], certificate["drop"]["value"]) == ("PASS", 0)


def test_a_text_encoder_is_optimized_for_pairs(
    run: Run, text_encoder: Encoder, rated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other process opens what is written; tests/search has one that does."""
    from lissom.search import concluding, forms, latency, recover, trying

    monkeypatch.setattr(concluding, "check_parity", lambda *given: {})
    monkeypatch.setattr(trying, "ROUNDS", 3)
    monkeypatch.setattr(latency, "MOST", 9)
    monkeypatch.setattr(recover, "TRIES", 0)
    for table in ("FORMS", "LOOKED_UP"):
        monkeypatch.setattr(forms, table, {name: getattr(forms, table)[name] for name in (forms.ORIGINAL, forms.SAFE)})
    folder, out = text_encoder(), tmp_path / "out"
    common = ("--data", rated, "--task", "sts", "--budget", "10%")
    done = run("optimize", folder, *common, "--prefer", "size", "--out", out, "--json")
    assert done.code == 0, done.error
    result = json.loads(done.lines[-1])
    assert (result["verdict"], result["chosen"]["name"]) == ("PASS", result["smallest"])
    assert result["certificate"]["n"] == 50
    opened = open_folder(out)
    assert opened.signature == open_folder(folder).signature  # texts go in, not pairs
    assert opened.manifest["report"]["metric"] == "Spearman correlation"
    before, after = (
        json.loads(run("evaluate", one, "--data", rated, "--task", "sts", "--json").out)["Spearman correlation"]
        for one in (folder, out)
    )
    assert after["value"] == pytest.approx(before["value"], abs=0.1)
    cut = tmp_path / "cut"
    done = run("recut", out, "--original", folder, *common, "--out", cut)
    assert done.code == 0, done.error
    assert "PASS" in done.out


def test_what_an_encoder_cannot_do_is_said(run: Run, text_encoder: Encoder, rated: Path, tmp_path: Path) -> None:
    folder, out = text_encoder(), tmp_path / "out"

    def told(verb: str, *words: object) -> str:
        done = run(verb, folder, *words)
        said = done.error.splitlines()[-1]  # transformers tells on the error stream that it reads weights
        assert (done.code, said.startswith("lissom: "), out.exists()) == (2, True, False)
        return str(said)

    for common in (("optimize", "--data", rated, "--out", out), ("evaluate", "--data", rated)):
        assert "turns texts into vectors; give --task sts, and as data pairs of sentences" in told(*common)
        assert f"--task lambada: {folder} turns texts into vectors" in told(*common, "--task", "lambada")
    assert "--data: give pairs of sentences with scores" in told("evaluate", "--task", "sts")
    (tmp_path / "long.csv").write_text(f"{'dog ' * 60},a cat,3\n")
    assert "tokens; possible are 1 to 48" in told("evaluate", "--task", "sts", "--data", tmp_path / "long.csv")
    wide = np.ones((3, 2, 49), dtype=np.int64)
    np.savez(tmp_path / "wide.npz", input_ids=wide, attention_mask=wide, labels=np.arange(3.0))
    assert "sentences of 49 tokens; at most 48 fit" in told(
        "evaluate", "--task", "sts", "--data", tmp_path / "wide.npz"
    )


def test_a_module_has_no_task(run: Run, module: Path, arrays: Path, tmp_path: Path) -> None:
    done = run("optimize", module, "--data", arrays, "--task", "sts", "--task-data", arrays, "--out", tmp_path / "out")
    assert (done.code, done.error.count("\n")) == (2, 1)
    assert "is no language model, nor a text encoder for sts" in done.error
