import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lissom.errors import DataError
from lissom.estimate import certify, mean_estimate
from lissom.evaluate.tasks.sts import SPEARMAN, read, read_for, read_tokens, similarity, spearman
from lissom.evaluate.tasks.sts import rated as rated_pairs
from lissom.models.text_encoder import TextEncoder
from lissom.types import Budget


def rated(n, seed=0, noise=1.0):
    """Similarities, and ratings with many ties."""
    rng = np.random.default_rng(seed)
    said = rng.integers(0, 11, n) / 2
    return np.stack([said + noise * rng.normal(size=n), said], axis=1)


def test_the_mean_is_spearmans_correlation():
    pairs = rated(300)
    assert spearman(pairs).mean() == pytest.approx(stats.spearmanr(*pairs.T).statistic)
    tied = np.round(pairs)
    assert spearman(tied).mean() == pytest.approx(stats.spearmanr(*tied.T).statistic)


def test_what_a_pair_adds_is_what_its_absence_takes_away():
    """The jackknife's pseudo-values, n ρ - (n - 1) ρ without the pair, which agree but for terms of 1/n."""
    pairs = np.round(rated(400), 1)
    rho = stats.spearmanr(*pairs.T).statistic
    without = [stats.spearmanr(*np.delete(pairs, i, axis=0).T).statistic for i in range(400)]
    pseudo = 400 * rho - 399 * np.array(without)
    assert spearman(pairs) == pytest.approx(pseudo, abs=0.05)
    assert np.corrcoef(spearman(pairs), pseudo)[0, 1] > 0.9999


def test_the_interval_covers_the_correlation():
    true = stats.spearmanr(*rated(200_000, seed=99).T).statistic
    found = [mean_estimate(spearman(rated(200, seed))) for seed in range(400)]
    covered = np.mean([one.low <= true <= one.high for one in found])
    assert 0.92 < covered < 0.98


def test_a_lower_correlation_is_rarely_passed():
    """The compressed model's similarities are noisier; the budget is the drop that this is."""
    drop = stats.spearmanr(*rated(200_000, 99, 1.0).T).statistic - stats.spearmanr(*rated(200_000, 99, 1.3).T).statistic
    passed = 0
    for seed in range(300):
        original, compressed = rated(150, seed), rated(150, seed, 1.3)
        budget = Budget(max_drop=float(drop))
        passed += certify(spearman(original), spearman(compressed), budget, bounds=None).verdict == "PASS"
    assert passed <= 300 * (0.05 + 2 * np.sqrt(0.05 * 0.95 / 300))


class Encoder(nn.Module):
    """Hidden states that are the embeddings."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.embed(input_ids))


class Pooled(nn.Module):
    """The mean of what another makes of a sentence."""

    def __init__(self, states):
        super().__init__()
        self.states = states

    def forward(self, **tokens):
        found = self.states(**tokens)
        return getattr(found, "last_hidden_state", found).mean(1)


def test_sentences_are_read_as_the_mean_of_what_is_no_filling():
    model = Encoder()
    ids = torch.randint(0, 50, (6, 2, 5))
    mask = torch.ones(6, 2, 5, dtype=torch.long)
    mask[:, 1, 3:] = 0
    said = torch.arange(6.0)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": said}
    with torch.no_grad():
        first, second = model.embed(ids[:, 0]).mean(1), model.embed(ids[:, 1, :3]).mean(1)
        expected = torch.cosine_similarity(first, second)
    rho = stats.spearmanr(expected, said).statistic
    assert SPEARMAN.scores(model, batch).mean() == pytest.approx(rho)


def test_what_a_model_makes_of_sentences_itself_is_taken_as_it_is():
    batch = {
        "input_ids": torch.randint(0, 50, (6, 2, 5)),
        "attention_mask": torch.ones(6, 2, 5, dtype=torch.long),
        "labels": torch.arange(6.0),
    }
    states = Encoder()
    assert torch.allclose(similarity(Pooled(states), batch), similarity(states, batch))
    with pytest.raises(DataError, match="give an encoder"):
        similarity(Pooled(Pooled(states)), batch)


def test_tokens_of_pairs(tmp_path):
    ids, file = np.arange(12, dtype=np.int32).reshape(3, 2, 2), tmp_path / "sts.npz"
    np.savez(file, input_ids=ids, attention_mask=np.ones_like(ids), labels=np.arange(3))
    lot = read_tokens(file)
    assert lot["input_ids"].tolist() == ids.tolist()
    assert (lot["attention_mask"].dtype, lot["labels"].tolist()) == (torch.long, [0.0, 1.0, 2.0])
    np.savez(file, input_ids=ids, attention_mask=np.ones_like(ids), labels=np.arange(2))
    with pytest.raises(DataError, match=r"input_ids is \[3, 2, 2\], .* labels \[2\]"):
        read_tokens(file)
    np.savez(file, input_ids=ids)
    with pytest.raises(DataError, match=r"no \.npz file with arrays input_ids, attention_mask and labels"):
        read_tokens(file)


def test_a_file_of_pairs(tmp_path):
    file = tmp_path / "sts.csv"
    file.write_text('"A man, a plan.",A canal.,4.5\nA dog.,The cat.,0\n')

    def tokenizer(sentences, **options):
        assert sentences == ["A man, a plan.", "A canal.", "A dog.", "The cat."]
        return {"input_ids": torch.arange(8).reshape(4, 2), "attention_mask": torch.ones(4, 2)}

    lot = read(file, tokenizer)
    assert lot["labels"].tolist() == [4.5, 0]
    assert lot["input_ids"].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    file.write_text("A man.,4.5\n")
    with pytest.raises(DataError, match="two sentences and a number"):
        read(file, tokenizer)


ROWS = [("A man, a plan.", 'A "canal".', 4.5), ("A dog.", "The cat.", 0.0)]


def test_pairs_come_with_commas_with_tabs_or_as_objects(tmp_path):
    csv, tsv, lines = (tmp_path / f"pairs.{kind}" for kind in ("csv", "tsv", "jsonl"))
    csv.write_text('Sentence1, sentence2,score\n"A man, a plan.","A ""canal"".",4.5\nA dog.,The cat.,0\n')
    tsv.write_text("\n".join("\t".join(map(str, row)) for row in ROWS))
    names = ("sentence1", "sentence2", "score")
    lines.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in ROWS))
    for file in (csv, tsv, lines):
        assert rated_pairs(file) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.csv", "sentence1,sentence2,score\n", "no pairs of sentences are in it"),
        ("pairs.tsv", "a dog\ta cat\n", "two sentences and a number"),
        ("pairs.csv", "a dog,a cat,high\n", r"two sentences and a number .*'high'"),
        ("pairs.csv", "a dog,a cat,nan\n", "nan is said of 'a dog'; give numbers that are finite"),
        ("pairs.jsonl", '{"sentence1": "a dog", "sentence2": "a cat"}', "has no 'score'"),
        ("pairs.jsonl", '{"sentence1": "a", "sentence2": "b", "score": "1"}', "'1' where a number is needed"),
        ("pairs.jsonl", '{"sentence1": "a", "sentence2": "b", "score": true}', "True where a number is needed"),
    ],
)
def test_what_is_no_pair_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        rated_pairs(tmp_path / name)


def test_an_encoder_reads_pairs_by_its_own_tokenizer(tmp_path):
    """As transformers reads them, with zeros behind their ends."""
    (tmp_path / "pairs.csv").write_text("One,two three,1\nfour five six,seven,2\n")
    words = ["one", "two three", "four five six", "seven"]
    tokenizer = SimpleNamespace(encode=lambda text: [1, *(3 for _ in text.split())])
    encoder = TextEncoder(nn.Identity(), longest=4, tokenizer=tokenizer)
    found = read_for(tmp_path / "pairs.csv", encoder)
    expected = [[1] + [3] * len(text.split()) + [0] * (3 - len(text.split())) for text in words]
    assert found["input_ids"].flatten(0, 1).tolist() == expected
    assert torch.equal(found["attention_mask"], (found["input_ids"] > 0).long())
    assert found["labels"].tolist() == [1, 2]
    encoder.longest = 3
    with pytest.raises(DataError, match="'four five six' has 4 tokens; possible are 1 to 3"):
        read_for(tmp_path / "pairs.csv", encoder)


def test_pairs_all_alike_have_no_ranks():
    with pytest.raises(DataError, match="no ranks"):
        spearman(np.ones((5, 2)))
