"""The shapes that data may come in."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoTokenizer

from lissom.calibrate import batches, call, token_windows
from lissom.errors import DataError

X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6)


@pytest.mark.parametrize(
    ("data", "shapes"),
    [
        (X, [[(6, 2)]]),
        ((X, Y), [[(6, 2), (6,)]]),
        ([X, X], [[(6, 2)], [(6, 2)]]),
        ([(X, Y)], [[(6, 2), (6,)]]),
        ([[X, Y]], [[(6, 2), (6,)]]),
        ({"x": X, "labels": Y}, [[(6, 2), (6,)]]),
        (iter([X]), [[(6, 2)]]),
        (DataLoader(TensorDataset(X, Y), batch_size=4), [[(4, 2), (4,)], [(2, 2), (2,)]]),
    ],
    ids=["tensor", "pair", "list", "pairs", "list of lists", "mapping", "iterator", "loader"],
)
def test_every_shape_of_data_becomes_batches(data: Any, shapes: list[list[tuple[int, ...]]]) -> None:
    found = []
    for batch in batches(data):
        parts: Any = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else (batch,)
        found.append([tuple(part.shape) for part in parts])
    assert found == shapes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "int is no data; give a tensor"),
        (TensorDataset(X), "TensorDataset is no data"),
        (["text"], "a batch of str is not made of tensors"),
        ([(X, 1)], "a batch of tuple is not made of tensors"),
        ((X, X, X), r"a tuple of 3 tensors is neither \(inputs, targets\) nor many batches; give a list"),
        ({"x": "text"}, "a batch of dict is not made of tensors"),
    ],
)
def test_what_is_no_data_is_named(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(batches(data))


class Sum(nn.Module):
    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return x.sum() if shift is None else x.sum() + shift.sum()


def test_the_target_is_not_passed_to_the_model() -> None:
    assert call(Sum(), X) == 66
    assert call(Sum(), (X, Y)) == 66
    assert call(Sum(), {"x": X, "shift": Y, "labels": Y}) == 66 + 15


def test_a_text_is_cut_into_whole_windows_without_special_tokens(demo_folder: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    text = "Once upon a time there was a little girl. " * 5
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = token_windows(text, tokenizer, 7)
    assert windows.shape == (len(ids) // 7, 7)
    assert windows.flatten().tolist() == ids[: len(ids) // 7 * 7]


def test_a_text_shorter_than_a_window_says_how_long_it_is(demo_folder: Any) -> None:
    with pytest.raises(DataError, match=r"data: \d tokens are too few for one window of 64; give more text"):
        token_windows("Once upon", AutoTokenizer.from_pretrained(demo_folder), 64)
