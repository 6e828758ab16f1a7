"""What was finished is there after any end, for the same work and for one process only; what is spoiled is not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lissom.artifact.fingerprint import of_files, of_json, of_model, of_tensors
from lissom.artifact.journal import Journal, beside
from lissom.errors import ArtifactError, RecipeError

ASKED = {"model": "m", "data": "d", "recipe": "r", "code": "c"}
TENSORS = {"a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.uint8)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return beside(tmp_path / "out")


def begun(folder: Path) -> None:
    """A journal with one piece of each kind."""
    with Journal.open(folder, ASKED) as journal:
        journal.keep("model.layers.0", {"bits": 4}, TENSORS)
        journal.keep("half / pruned + 50 %", {"kl": 0.1 + 0.2})


@pytest.mark.parametrize("coding", [None, "deflate"])
def test_what_was_kept_is_read_back_to_the_bit(folder: Path, coding: str | None) -> None:
    with Journal.open(folder, ASKED) as journal:
        journal.keep("half / pruned + 50 %", {"kl": 0.1 + 0.2, "steps": [{"layers": "*"}]})
        journal.keep("model.layers.0", {"bits": 4}, TENSORS | {"zeros": torch.zeros(4096, dtype=torch.int32)}, coding)
    with Journal.open(folder, ASKED) as journal:
        assert journal.names() == ["half / pruned + 50 %", "model.layers.0"]
        assert all(journal.has(name) for name in journal.names())
        assert not journal.has("model.layers.1")
        assert journal.read("half / pruned + 50 %") == {"kl": 0.1 + 0.2, "steps": [{"layers": "*"}]}
        assert journal.read("model.layers.0") == {"bits": 4}
        found = journal.tensors("model.layers.0")
        assert found.keys() == {*TENSORS, "zeros"}
        assert all(
            torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
        )


def altered(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")


@pytest.mark.parametrize("spoil", [altered, Path.unlink])
def test_a_piece_whose_file_is_not_what_was_written_is_not_there(folder: Path, spoil: Callable[[Path], None]) -> None:
    begun(folder)
    spoil(folder / "files" / "model.layers.0.safetensors")
    with Journal.open(folder, ASKED) as journal:
        assert not journal.has("model.layers.0")
        journal.keep("model.layers.0", {"bits": 3}, TENSORS)
        assert journal.has("model.layers.0")
        assert journal.read("model.layers.0") == {"bits": 3}


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({**ASKED, "data": "other"}, "the data changed since"),
        ({**ASKED, "model": "other", "code": "other"}, "the model and the code changed since"),
        ({"model": "m", "data": "d", "recipe": "r"}, "the code changed since"),
    ],
)
def test_what_changed_is_named_and_nothing_is_lost(folder: Path, asked: dict[str, str], named: str) -> None:
    begun(folder)
    with pytest.raises(ArtifactError, match=rf"^{named} .*\.out\.work was begun; .* remove that folder to begin anew$"):
        Journal.open(folder, asked)
    with Journal.open(folder, ASKED) as journal:
        assert journal.has("model.layers.0")


def test_one_process_works_in_a_folder(folder: Path) -> None:
    child = (
        "import sys; from pathlib import Path; from lissom.artifact.journal import locked; locked(Path(sys.argv[1]))"
    )
    with Journal.open(folder, ASKED) as journal:
        journal.keep("a", {})
        tried = subprocess.run([sys.executable, "-c", child, folder], capture_output=True, text=True, check=False)
        assert f".out.work is being worked in by process {os.getpid()}; wait until it ends" in tried.stderr
    subprocess.run([sys.executable, "-c", child, folder], check=True)
    Journal.open(folder, ASKED).remove()


def full(text: str) -> Callable[[Path], None]:
    """What makes a folder of two files."""

    def write(new: Path) -> None:
        new.mkdir()
        (new / "a").write_text(text, encoding="utf-8")
        (new / "b").write_text(text, encoding="utf-8")

    return write


@pytest.mark.parametrize("spoil", [altered, Path.unlink])
def test_a_piece_may_be_a_folder(folder: Path, spoil: Callable[[Path], None]) -> None:
    with Journal.open(folder, ASKED) as journal:
        place = journal.keep_folder("learned / 1", {"kl": 0.5}, full("first"))
        assert place == journal.place("learned / 1")
    with Journal.open(folder, ASKED) as journal:
        assert journal.has("learned / 1")
        assert journal.read("learned / 1") == {"kl": 0.5}
    spoil(place / "a")
    with Journal.open(folder, ASKED) as journal:
        assert not journal.has("learned / 1")
        journal.keep_folder("learned / 1", {"kl": 0.5}, full("again"))
        assert journal.has("learned / 1")
    assert {file.read_text(encoding="utf-8") for file in place.iterdir()} == {"again"}


def test_half_a_folder_is_cleared_away_and_one_that_cannot_be_made_leaves_nothing(folder: Path) -> None:
    def refuse(new: Path) -> None:
        full("half")(new)
        raise ArtifactError("the disk is full")

    with Journal.open(folder, ASKED) as journal:
        journal.keep_folder("whole", {}, full("whole"))
        with pytest.raises(ArtifactError, match="is full; make room and do the same again: what was finished waits in"):
            journal.keep_folder("half", {}, refuse)
        assert not journal.has("half")
        assert list(journal.folders.iterdir()) == [journal.place("whole")]
        full("half")(journal.place("half"))  # and its process ends before the record is written
    with Journal.open(folder, ASKED) as journal:
        assert list(journal.folders.iterdir()) == [journal.place("whole")]


def test_what_was_half_written_is_cleared_away(folder: Path) -> None:
    begun(folder)
    for name in (".model.layers.1.safetensors.77", "model.layers.1.safetensors", "lissom.json"):
        (folder / "files" / name).write_bytes(b"half")
    with Journal.open(folder, ASKED) as journal:
        assert [file.name for file in journal.files.iterdir()] == ["model.layers.0.safetensors"]


def test_a_full_disk_is_named_and_the_other_pieces_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(folder)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal.open(folder, ASKED) as journal:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match=r"more\.safetensors cannot be .*: No space left on device; make"):
            journal.keep("more", {}, TENSORS)
        assert not journal.has("more")
    with Journal.open(folder, ASKED) as journal:
        assert journal.names() == ["half / pruned + 50 %", "model.layers.0"]
        assert [file.name for file in journal.files.iterdir()] == ["model.layers.0.safetensors"]


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, part: str) -> None:
    """From now on the disk is full for this method of every path with such a part in its name."""
    real = getattr(Path, name)

    def refuse(file: Path, *rest: Any, **named: Any) -> Any:
        if part in file.name:
            raise OSError(28, "No space left on device", str(file))
        return real(file, *rest, **named)

    monkeypatch.setattr(Path, name, refuse)


@pytest.mark.parametrize(
    ("name", "part"), [("mkdir", ".out.work"), ("open", "lock"), ("mkdir", "records"), ("write_text", "journal.json")]
)
def test_a_journal_that_cannot_be_begun_is_named_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part: str
) -> None:
    refusing(monkeypatch, name, part)
    with pytest.raises(ArtifactError, match=rf"{part} cannot be written: No space left on device; make room, or let"):
        Journal.open(folder, ASKED)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    monkeypatch.undo()
    begun(folder)


@pytest.mark.parametrize("part", ["more.json", "more.safetensors"])
def test_of_a_piece_that_cannot_be_written_nothing_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Neither its tensors nor half of its record; also where the disk lets nothing be removed it is said why."""
    begun(folder)
    with Journal.open(folder, ASKED) as journal:
        refusing(monkeypatch, "replace", part)
        before = set(folder.rglob("*"))
        with pytest.raises(ArtifactError, match=rf"{part} cannot be written: No space left .* waits in .*\.out\.work$"):
            journal.keep("more", {}, TENSORS)
        assert set(folder.rglob("*")) == before
        refusing(monkeypatch, "unlink", "more")
        with pytest.raises(ArtifactError, match=rf"{part} cannot be written: No space left on device; make room"):
            journal.keep("more", {}, TENSORS)
        assert not journal.has("more")
        monkeypatch.undo()
        journal.keep("more", {"first": 1}, TENSORS)
        refusing(monkeypatch, "replace", part)
        with pytest.raises(ArtifactError):
            journal.keep("more", {"second": 2}, TENSORS)
        assert journal.has("more") == (
            part == "more.safetensors"
        )  # the record is of what the file holds, or it is none
        assert journal.has("model.layers.0")


def test_what_cannot_be_cleared_away_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(folder)
    (folder / "files" / "half.safetensors").write_bytes(b"half")
    refusing(monkeypatch, "unlink", "half.safetensors")
    with pytest.raises(ArtifactError, match=r"half\.safetensors cannot be written: No space"):
        Journal.open(folder, ASKED)
    monkeypatch.undo()
    with Journal.open(folder, ASKED) as journal:  # nobody holds the lock
        assert len(journal.names()) == 2


def test_what_others_keep_in_a_folder_stays(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.tex"
    mine.write_text("mine")
    (tmp_path / "files").mkdir()
    with pytest.raises(
        ArtifactError, match=r"holds 'thesis\.tex', which is none of ours; give a new or an empty folder"
    ):
        Journal.open(tmp_path, ASKED)
    assert {file.name for file in tmp_path.iterdir()} == {"thesis.tex", "files"}
    mine.unlink()
    with Journal.open(tmp_path, ASKED):
        mine.write_text("mine")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_files_become_the_result_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    begun(folder)
    with Journal.open(folder, ASKED) as journal:
        before = journal.file("model.layers.0").stat().st_ino
        journal.become(tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.layers.0.safetensors").stat().st_ino == before
    folder.mkdir()
    (folder / "journal.json").write_text(json.dumps({"model": "another"}))  # as if stopped while all else was removed
    with Journal.open(folder, ASKED) as journal:
        assert journal.names() == []


@pytest.mark.parametrize(("error", "left"), [(RecipeError, []), (KeyboardInterrupt, [".out.work"])])
def test_only_what_can_be_gone_on_with_stays(
    folder: Path, tmp_path: Path, error: type[BaseException], left: list[str]
) -> None:
    def stopped(*kept: str) -> None:
        with Journal.open(folder, ASKED) as journal:
            for name in kept:
                journal.keep(name, {})
            raise error

    for kept in ([], ["a"]):
        with pytest.raises(error):
            stopped(*kept)
        assert [file.name for file in tmp_path.iterdir()] == (left if kept else [])


def test_fingerprints_know_every_number_and_no_order_of_entries(tmp_path: Path) -> None:
    def changed(tensor: Tensor) -> Tensor:
        other = tensor.clone()
        other[-1] += 1
        return other

    x = torch.tensor([0.0, 1.0])
    lots = [{"x": x}, {"y": x}, {"x": changed(x)}, {"x": x.unsqueeze(0)}, {"x": x.bfloat16()}, {"x": x, "y": x}, {}]
    assert len({of_tensors(lot) for lot in lots}) == len(lots)
    assert of_tensors({"x": torch.stack([x, x], 1)[:, 0]}) == of_tensors({"x": x})
    assert of_json({"a": 1, "b": 2}) == of_json({"b": 2, "a": 1}) != of_json({"a": 1, "b": 3})
    (tmp_path / "config.json").write_text("{}")
    only_config = of_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"ab")
    assert len({only_config, of_model(tmp_path), of_files([tmp_path / "model.safetensors"])}) == 3
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read: No such file or directory; copy or"):
        of_model(tmp_path)
