"""lissom.json: what the folder holds, how it came about, and the hash of every other file in it.

A folder is built under a temporary name beside its own and renamed when it is whole, so that it is there or it is not.
"""

import hashlib
import json
import mmap
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lissom.errors import ArtifactError
from lissom.files import read_json, replacing

MANIFEST = "lissom.json"
FORMAT = 1


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it takes its name when the block ends well and is gone when it does not.

    Raises:
        ArtifactError: the name is taken, or the disk cannot hold it.
    """
    check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be made: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(folder: Path) -> None:
    """See that a folder of this name can be made.

    Raises:
        ArtifactError: the name is taken.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists already; remove it or choose another name")


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    with replacing(file) as new:
        new.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(folder: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write lissom.json with the hash of every file that is in the folder now."""
    files = {file.name: fingerprint(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    head = {"format": FORMAT, "kind": kind, "lissom": package_version(), "torch": version("torch")}
    write_json(folder / MANIFEST, {**head, **content, "files": files})


def fingerprint(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    size = file.stat().st_size
    if not size:  # cannot be mapped
        return {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {"bytes": size, "sha256": hashlib.sha256(content).hexdigest()}  # at once: a thread that does it goes on


def package_version() -> str:
    """The version of lissom."""
    try:
        return version("lissom")
    except PackageNotFoundError:
        return "unknown"


def read_manifest(folder: Path) -> dict[str, Any]:
    """lissom.json, once every file has been seen to be what it says.

    Raises:
        ArtifactError: it is missing or of a later format, or a file is missing or altered.
    """
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} is no lissom folder: it has no {MANIFEST}")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ArtifactError(f"{folder / MANIFEST} has format {manifest.get('format')!r}; this lissom reads {FORMAT}")
    verify(folder, manifest)
    return manifest


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """See that the files are the ones whose hashes were written down, and that no others would be read with them.

    Raises:
        ArtifactError: one is missing, cut short, altered or was added; it is named.
    """
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ArtifactError(f"{folder / MANIFEST} is damaged: it names no files; copy the folder again")
    for name, wanted in files.items():
        verify_file(folder, name, wanted)
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        if file.name not in {*files, MANIFEST}:
            raise ArtifactError(f"{file} is not one of the files that were written; remove it")


def verify_file(folder: Path, name: str, wanted: Any) -> None:
    """See that one file is what was written.

    Raises:
        ArtifactError: it is missing, cut short or altered.
    """
    if Path(name).name != name:
        raise ArtifactError(f"{folder / MANIFEST} names {name!r}, which is not a file of the folder")
    if not (isinstance(wanted, dict) and {"bytes", "sha256"} <= set(wanted)):
        raise ArtifactError(f"{folder / MANIFEST} is damaged: {name!r} has no hash; copy the folder again")
    file = folder / name
    if not file.is_file():
        raise ArtifactError(f"{file} is missing; copy the folder again")
    size = file.stat().st_size
    if size != wanted["bytes"]:
        raise ArtifactError(f"{file} has {size} bytes where {wanted['bytes']} were written; copy the folder again")
    if fingerprint(file)["sha256"] != wanted["sha256"]:
        raise ArtifactError(f"{file} is not the file that was written (SHA-256 differs); copy the folder again")


def add_file(folder: Path, name: str) -> None:
    """Enter a file that was put into the folder later."""
    files = read_json(folder / MANIFEST)["files"]
    annotate(folder, files={**files, name: fingerprint(folder / name)})


def annotate(folder: Path, **content: Any) -> None:
    """Add to lissom.json what was found out later: the report, the certificate."""
    manifest = read_json(folder / MANIFEST)
    write_json(folder / MANIFEST, {**manifest, **content})
