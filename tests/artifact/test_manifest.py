"""What is on disk is what was written, or it is refused by name; what was not finished is not there."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from lissom.artifact import MANIFEST, annotate, load, open_folder, read_manifest, save
from lissom.artifact.manifest import building, fingerprint, write_manifest
from lissom.errors import ArtifactError
from lissom.files import read_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(nn.Sequential(nn.Linear(8, 8)), tmp_path / "saved")


def altered(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def shorter(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


SPOILED: list[tuple[Callable[[Path], None], str]] = [
    (altered, r"is not the file that was written \(SHA-256 differs\)"),
    (shorter, r"has \d+ bytes where \d+ were written"),
    (Path.unlink, "is missing"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILED, ids=["altered", "shorter", "missing"])
def test_a_file_that_is_not_what_was_written_is_refused(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder / "model.safetensors")
    for opening in (load, open_folder, read_manifest):
        with pytest.raises(ArtifactError, match=rf"model\.safetensors {message}.*; copy the folder again"):
            opening(folder)


def test_a_file_that_was_not_written_is_refused(folder: Path) -> None:
    (folder / "more.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"more\.safetensors is not one of the files that were written; remove it"):
        load(folder)


def test_a_page_beside_the_model_is_nobodys_business(folder: Path) -> None:
    (folder / "README.md").write_text("A model.")
    (folder / "report.html").write_text("<html></html>")
    assert isinstance(load(folder), nn.Sequential)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"format": 2}', "has format 2; this lissom reads 1"),
        ("{}", "has format None"),
        ('{"format": 1, "files": {"../x": {"bytes": 1, "sha256": ""}}}', "names '../x', which is not a file of"),
        ('{"format": 1, "files": ["model.safetensors"]}', "is damaged"),
        ('{"format": 1, "files": {"model.safetensors": {}}}', "is damaged"),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(ArtifactError, match=rf"lissom\.json.*{message}"):
        open_folder(folder)


def test_a_folder_without_a_manifest_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no lissom folder: it has no lissom\.json"):
        read_manifest(tmp_path)


def test_an_existing_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="exists already; remove it or choose another name"):
        save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "saved")
    assert [file.name for file in (tmp_path / "saved").iterdir()] == ["thesis.tex"]
    with pytest.raises(ArtifactError, match="exists already"):
        save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "saved" / "thesis.tex")


@pytest.mark.parametrize("content", [b"", b"words", bytes(3 * 2**20)])
def test_a_file_is_hashed_as_hashlib_hashes_its_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    expected = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert fingerprint(tmp_path / "file") == expected


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    assert isinstance(load(save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "saved")), nn.Sequential)


def test_folders_above_are_made(tmp_path: Path) -> None:
    assert (save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "a" / "b") / MANIFEST).is_file()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be made"):
        save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "file" / "saved")


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_crash_in_the_middle_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    expected = ArtifactError if isinstance(error, OSError) else type(error)

    def half() -> None:
        with building(tmp_path / "saved") as folder:
            (folder / "half").write_text("half")
            raise error

    with pytest.raises(expected):
        half()
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_has_the_hash_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("abc")
    write_manifest(tmp_path, "module", {"weights": {}})
    manifest = read_manifest(tmp_path)
    assert manifest["kind"] == "module"
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc, FIPS 180-2 appendix B.1
    assert manifest["files"] == {"x.txt": {"bytes": 3, "sha256": sha256}}
    assert not list(tmp_path.glob(".*"))


def test_what_is_found_out_later_is_added(folder: Path) -> None:
    before = read_json(folder / MANIFEST)
    annotate(folder, certificate={"verdict": "PASS"})
    assert json.loads((folder / MANIFEST).read_text()) == {**before, "certificate": {"verdict": "PASS"}}
    assert open_folder(folder).evidence["certificate"] == {"verdict": "PASS"}
    point = {"name": "8 bits", "nbytes": 9, "drop": {"value": 0.1, "n": 2}, "latency": {"value": 1.5}, "kl": None}
    annotate(folder, report={"points": [point], "target": "cpu"})
    evidence = open_folder(folder).evidence
    assert evidence["frontier"] == [{"name": "8 bits", "nbytes": 9, "drop": 0.1, "ms": 1.5}]
    assert evidence["target"] == "cpu"
