"""Batches of texts of different lengths."""

import pytest
import torch
from torch import Tensor

import lissom
from lissom.calibrate.padding import IGNORED, padded
from lissom.errors import DataError
from lissom.search.split import joined


def texts(*widths: int, before: bool = False, filler: int = 7) -> list[dict[str, Tensor]]:
    """Batches of two texts, one as long as the batch is wide and one shorter by two, padded."""
    found = []
    for width in widths:
        ids, mask = torch.randint(10, 90, (2, width)), torch.ones(2, width, dtype=torch.long)
        gone = slice(0, 2) if before else slice(width - 2, width)
        ids[1, gone], mask[1, gone] = filler, 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1])})
    return found


@pytest.mark.parametrize("before", [False, True])
def test_texts_become_as_wide_as_the_longest(before: bool) -> None:
    batches = texts(5, 9, 7, before=before)
    found = padded(batches)
    for one, whole in zip(batches, found, strict=True):
        assert whole["input_ids"].shape == whole["attention_mask"].shape == (2, 9)
        kept = whole["attention_mask"] == 1
        assert torch.equal(whole["input_ids"][kept], one["input_ids"][one["attention_mask"] == 1])
        assert set(whole["input_ids"][~kept].tolist()) <= {7}
        assert torch.equal(kept.sum(1), one["attention_mask"].sum(1))
        assert torch.equal(whole["labels"], one["labels"])
        first = kept[:, 0 if before else -1]
        assert not first[1]


def test_targets_of_tokens_count_for_nothing_there() -> None:
    batches = texts(4, 6)
    for batch in batches:
        batch["labels"] = batch["input_ids"] + 1
        batch["token_type_ids"] = torch.ones_like(batch["input_ids"])
        batch["weights"] = torch.rand(2, 3)
    first, _ = padded(batches)
    assert first["labels"][:, 4:].unique().tolist() == [IGNORED]
    assert first["token_type_ids"].shape == (2, 6)
    assert torch.equal(first["weights"], batches[0]["weights"])


def test_pairs_of_texts_are_padded_too() -> None:
    batches = [{"input_ids": torch.ones(3, 2, t), "attention_mask": torch.ones(3, 2, t)} for t in (4, 5)]
    assert [tuple(batch["input_ids"].shape) for batch in padded(batches)] == [(3, 2, 5)] * 2


def test_what_does_not_fit_together_is_named() -> None:
    with pytest.raises(DataError, match=r"examples of \[5\] and \[\], another of \[6\] and \[\]; .*attention_mask"):
        joined([(torch.zeros(2, 5), torch.zeros(2)), (torch.zeros(2, 6), torch.zeros(2))])
    with pytest.raises(DataError, match=r"examples of x \[5\], another of y \[5\]"):
        joined([{"x": torch.zeros(2, 5)}, {"y": torch.zeros(2, 5)}])


def test_an_empty_text_does_not_tell_on_which_side_others_are_padded() -> None:
    batches = texts(5, 7)
    batches[0]["attention_mask"][1] = 0
    assert padded(batches)[0]["attention_mask"][0].tolist() == [1] * 5 + [0] * 2


def test_names_may_come_in_any_order_and_one_tensor_alone_or_in_a_tuple() -> None:
    x, y = torch.randn(2, 5), torch.randn(2, 3)
    named = joined([{"x": x, "y": y}, {"y": y, "x": x}])
    assert isinstance(named, dict)
    assert torch.equal(named["x"], torch.cat([x, x]))
    assert torch.equal(joined([x, (x,)]), torch.cat([x, x]))  # type: ignore[arg-type]


class Bag(torch.nn.Module):
    """The class of a text by the mean of its words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = torch.nn.Embedding(100, 32), torch.nn.Linear(32, 32)
        self.head = torch.nn.Linear(32, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = torch.relu(self.inner(self.words(input_ids))) * attention_mask[..., None]
        classes: Tensor = self.head(x.sum(1) / attention_mask.sum(1, keepdim=True))
        return classes


def test_a_search_takes_batches_of_any_width() -> None:
    model = Bag().eval()
    batches = [one for width in range(4, 34) for one in texts(*[width] * 12)]
    with torch.no_grad():
        for batch in batches:
            batch["labels"] = model(batch["input_ids"], batch["attention_mask"]).argmax(1)
    found = lissom.optimize(model, batches, lissom.Budget(max_drop=0.1))
    assert found.best is not None
    assert found.best.point.nbytes < sum(parameter.nbytes for parameter in model.parameters()) / 2
