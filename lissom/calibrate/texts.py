"""Texts of any length as windows of tokens, read a piece at a time and no further than is asked for.

Shapes: n windows, t tokens of a window.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from lissom.errors import DataError
from lissom.techniques.knobs import at_least

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 2**20  # characters that are made tokens of at once, to the end of a line


def read_windows(
    files: Iterable[Path], tokenizer: "PreTrainedTokenizerBase", length: int, most: int | None = None
) -> Int32[Tensor, "n t"]:
    """Files of text, one after the other, as whole windows of `length` tokens, `most` at most.

    Of a .jsonl file each line is a JSON object whose "text" is one of the texts. No special tokens are put between.

    Raises:
        DataError: a file cannot be read, or all of them are shorter than one window.
    """
    at_least(2, length=length)
    wanted, found, count = None if most is None else most * length, list[np.ndarray](), 0
    for piece in pieces(files):
        ids = np.asarray(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"], np.int32)
        found.append(ids)
        count += len(ids)
        if wanted is not None and count >= wanted:
            break
    if count < length:
        raise DataError(f"data: {count} tokens are too few for one window of {length}; give more text")
    tokens = torch.from_numpy(np.concatenate(found))
    return tokens[: min(count, wanted or count) // length * length].reshape(-1, length)


def pieces(files: Iterable[Path]) -> Iterator[str]:
    """The texts of files, in pieces of whole lines."""
    for file in files:
        held: list[str] = []
        size = 0
        for line in lines(file):
            held.append(line)
            size += len(line)
            if size >= PIECE:
                yield "".join(held)
                held, size = [], 0
        if held:
            yield "".join(held)


def lines(file: Path) -> Iterator[str]:
    """The lines of a text, or the texts of a .jsonl file.

    Raises:
        DataError: it cannot be read, or a line of it is no JSON object with a text.
    """
    try:
        with file.open(encoding="utf-8") as opened:
            for number, line in enumerate(opened, 1):
                yield text_of(line, file, number) if file.suffix == ".jsonl" else line
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as text: {error}") from None


def text_of(line: str, file: Path, number: int) -> str:
    """The text of a line of JSON, which ends with the line.

    Raises:
        DataError: it has none.
    """
    try:
        found = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise DataError(f'{file}, line {number}: give in each line a JSON object with a text, {{"text": "..."}}')
    return f"{found}\n"
