"""Texts read a piece at a time."""

import json
from pathlib import Path

import pytest
import torch

from lissom.calibrate import texts, token_windows
from lissom.calibrate.texts import read_windows
from lissom.errors import DataError
from lissom.models import Checkpoint


def test_pieces_make_the_windows_of_the_whole(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, file = Checkpoint(demo_folder).tokenizer(), demo_folder / "stories.txt"
    whole = token_windows(file.read_text(encoding="utf-8"), tokenizer, 64)
    assert torch.equal(read_windows([file], tokenizer, 64).long(), whole)
    monkeypatch.setattr(texts, "PIECE", 3000)
    some = read_windows([file], tokenizer, 64, 40)
    assert some.shape == (40, 64)
    assert float((some.long() == whole[:40]).float().mean()) > 0.9  # but for what was one token across two lines


def test_lines_of_json_are_texts(demo_folder: Path, tmp_path: Path) -> None:
    tokenizer = Checkpoint(demo_folder).tokenizer()
    lines = ["Once upon a time there was a cat.", "The end."]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    found = [read_windows([tmp_path / name], tokenizer, 4) for name in ("a.txt", "a.jsonl")]
    assert torch.equal(*found)
    both = read_windows([tmp_path / "a.txt", tmp_path / "a.jsonl"], tokenizer, 4)
    assert len(both) >= 2 * len(found[0])
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"words": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.jsonl, line 2: give in each line"):
        read_windows([tmp_path / "b.jsonl"], tokenizer, 4)
    with pytest.raises(DataError, match="too few for one window of 512"):
        read_windows([tmp_path / "a.txt"], tokenizer, 512)
    with pytest.raises(DataError, match="cannot be read as text"):
        read_windows([tmp_path / "none.txt"], tokenizer, 4)
