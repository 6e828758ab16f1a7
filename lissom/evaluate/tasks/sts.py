"""STS: do an encoder's similarities of sentence pairs rank them as people do? Spearman's correlation.

Cer et al., SemEval 2017, arXiv:1708.00055: a .csv or .tsv file of sentence, sentence, and what people say, from 0 to 5,
or a .jsonl file of objects with these as sentence1, sentence2 and score. They are read as by Reimers and Gurevych,
arXiv:1908.10084: the mean of the last hidden states, or what a model makes of a sentence itself, and the cosine of
both.

A correlation of ranks is no mean of what each pair scores, but nearly one: with F and G the ranks as fractions, ties at
their middle, it is ρ = C / √(V_F V_G), C = E[(F - ½)(G - ½)], V = E[(F - ½)²], and a pair (x, y) adds to it

    ψ = ψ_C / √(V_F V_G) - ρ/2 · (ψ_F / V_F + ψ_G / V_G)
    ψ_C = (F(x) - ½)(G(y) - ½) + E[(x ≺ X)(G(Y) - ½)] + E[(y ≺ Y)(F(X) - ½)] - 3 C
    ψ_F = (F(x) - ½)² + 2 E[(x ≺ X)(F(X) - ½)] - 3 V_F

where x ≺ X is 1, or ½ if both are the same (the influence function; Croux and Dehon, Statistical Methods and
Applications 2010, without ties). A pair's score is ρ + ψ. Their mean is ρ, and their spread that of ρ, so they are
certified as scores without bounds are. Ranks need all pairs: the examples are looked at once, all together.

Shapes: n pairs, t tokens of a sentence, h hidden width.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.errors import DataError
from lissom.estimate import Array
from lissom.evaluate.metric import Metric
from lissom.evaluate.tasks.lines import objects
from lissom.files import read_text
from lissom.models.text_encoder import TextEncoder

Pairs = dict[str, Tensor]  # input_ids and attention_mask (n, 2, t), labels (n)
TOKENS = ("input_ids", "attention_mask")
NAMES = ("sentence1", "sentence2", "score")
FIELDS = dict(zip(NAMES, (str, str, float), strict=True))


def read(file: Path, tokenizer: Any, tokens: int | None = None) -> Pairs:
    """The pairs of a file; of so many tokens each sentence, else of as many as the longest has.

    Raises:
        DataError: it cannot be read, or a line is no pair.
    """
    pairs = rated(file)
    sentences = [sentence for pair in pairs for sentence in pair[:2]]
    filled = True if tokens is None else "max_length"
    found = tokenizer(sentences, padding=filled, truncation=True, max_length=tokens, return_tensors="pt")
    return {name: found[name].unflatten(0, (-1, 2)) for name in TOKENS} | {"labels": labels(pairs)}


def read_for(file: Path, encoder: TextEncoder) -> Pairs:
    """The pairs of a file as a text encoder's own tokenizer reads them.

    Raises:
        DataError: it cannot be read, a line is no pair, or a sentence has no tokens or more than the encoder takes.
    """
    pairs = rated(file)
    sentences = [sentence for first, second, _ in pairs for sentence in (first, second)]
    texts = [list(encoder.tokenizer.encode(sentence)) for sentence in sentences]
    for sentence, text in zip(sentences, texts, strict=True):
        if not 0 < len(text) <= encoder.longest:
            raise DataError(f"{file}: {sentence[:40]!r} has {len(text)} tokens; possible are 1 to {encoder.longest}")
    ids, mask = torch.zeros(2, len(texts), max(map(len, texts)), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    found = dict(zip(TOKENS, (ids, mask), strict=True))
    return {name: part.unflatten(0, (-1, 2)) for name, part in found.items()} | {"labels": labels(pairs)}


def rated(file: Path) -> list[tuple[str, str, float]]:
    """The pairs of a file; of texts with commas or, in a .tsv file, tabs a first line of names is none.

    Raises:
        DataError: it cannot be read, a line is no pair, or there is none.
    """
    if file.suffix == ".jsonl":
        found = [(one[NAMES[0]], one[NAMES[1]], float(one[NAMES[2]])) for one in objects(file, FIELDS)]
    else:
        found = [pair_of(line, file) for line in table(file)]
    wrong = next((pair for pair in found if not math.isfinite(pair[2])), None)
    if wrong is not None:
        raise DataError(f"{file}: {wrong[2]} is said of {wrong[0][:40]!r}; give numbers that are finite")
    if not found:
        raise DataError(f"{file}: no pairs of sentences are in it")
    return found


def table(file: Path) -> list[list[str]]:
    """The lines of a .csv or .tsv file, but for empty ones and a first one of names.

    Raises:
        DataError: it cannot be read.
    """
    # In a .tsv file, as benchmarks distribute them, a quotation mark is one.
    form: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
    try:
        lines = [line for line in csv.reader(read_text(file).splitlines(), **form) if line]
    except csv.Error as error:
        raise DataError(f"{file} cannot be read as a table: {error}") from None
    named = lines and [word.strip().lower() for word in lines[0]] == list(NAMES)
    return lines[1:] if named else lines


def pair_of(line: list[str], file: Path) -> tuple[str, str, float]:
    """A pair, of a line of a table.

    Raises:
        DataError: it is none.
    """
    try:
        first, second, said = line
        return first, second, float(said)
    except ValueError as error:
        raise DataError(f"{file}: each line needs two sentences and a number ({error}): {str(line)[:80]}") from None


def labels(pairs: list[tuple[str, str, float]]) -> Float[Tensor, " n"]:
    """What people say of pairs."""
    return torch.tensor([said for _, _, said in pairs])


def read_tokens(file: Path) -> Pairs:
    """Pairs that were tokenized elsewhere: an .npz file with the arrays that a batch has.

    Raises:
        DataError: it cannot be read, lacks an array, or they do not fit each other.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            pairs = {name: torch.from_numpy(arrays[name]) for name in (*TOKENS, "labels")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no .npz file with arrays {', '.join(TOKENS)} and labels: {error}") from None
    ids, mask, said = pairs.values()
    if ids.ndim != 3 or ids.shape[1] != 2 or ids.shape != mask.shape or said.shape != ids.shape[:1]:
        raise DataError(
            f"{file}: input_ids is {list(ids.shape)}, attention_mask {list(mask.shape)} and labels {list(said.shape)}; "
            "give [pairs, 2, tokens] for the first two and [pairs] for the last"
        )
    return {"input_ids": ids.long(), "attention_mask": mask.long(), "labels": said.float()}


def similarity(model: nn.Module, batch: Batch) -> Float[Tensor, "n 2"]:
    """The cosine of each pair, and what people say.

    Raises:
        DataError: the batch is none that `read` made, or the model gives nothing of sentences.
    """
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        raise DataError("sts: its pairs are read from a file by `read`")
    mask = batch["attention_mask"].flatten(0, 1)
    output = model(input_ids=batch["input_ids"].flatten(0, 1), attention_mask=mask)
    found = getattr(output, "last_hidden_state", output)
    if not isinstance(found, Tensor) or found.ndim not in (2, 3):
        raise DataError(
            f"sts: the model gave {type(output).__name__} where last_hidden_state [sentences, tokens, width] or a "
            "tensor [sentences, width] is needed; give an encoder"
        )
    if found.ndim == 3:
        kept = mask[..., None].float()
        found = (found.float() * kept).sum(1) / kept.sum(1)
    first, second = found.float().unflatten(0, (-1, 2)).unbind(1)
    return torch.stack([torch.cosine_similarity(first, second), batch["labels"]], dim=1)


def spearman(pairs: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """What each pair adds to the correlation of ranks, which is the mean.

    Raises:
        DataError: there are fewer than two pairs, or all similarities or all of what people say are the same.
    """
    x, y = pairs.T
    f, g = (0.5 - above(each, np.ones(each.size)) for each in (x, y))  # the ranks, less ½
    c, v, w = (f * g).mean(), (f * f).mean(), (g * g).mean()
    if v * w == 0:
        raise DataError(f"sts: {len(pairs)} pairs that are all alike have no ranks; give pairs that differ")
    rho = c / np.sqrt(v * w)
    both = f * g + above(x, g) + above(y, f) - 3 * c
    own, said = (rank * rank + 2 * above(each, rank) - 3 * (rank * rank).mean() for each, rank in ((x, f), (y, g)))
    return np.asarray(rho + both / np.sqrt(v * w) - rho / 2 * (own / v + said / w))


def above(x: Float[Array, " n"], values: Float[Array, " n"]) -> Float[Array, " n"]:
    """For each x the sum of the values of those above it and half of those beside it, as a fraction of n."""
    order = np.argsort(x, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(values[order])])
    below, upto = sums[np.searchsorted(x[order], x)], sums[np.searchsorted(x[order], x, "right")]
    return np.asarray(sums[-1] - (below + upto) / 2) / x.size


SPEARMAN = Metric(name="Spearman correlation", output=similarity, whole=spearman, bounds=None, examples=32)
