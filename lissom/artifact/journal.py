"""A journal of long work: every finished piece is kept on disk, so that who is stopped, however, can go on.

    .OUT.work/
        lock            held by the one process that works here
        journal.json    fingerprints of what was asked: of the model, the data, the recipe, the code
        records/        a JSON object for each finished piece, with the hash of its file where it has one
        files/          tensors of finished pieces; complete, the folder may become the result
        folders/        pieces that are folders

A piece is written under another name, brought to the disk, and then takes its name: it is there whole or not at all.
"""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import quote, unquote

from torch import Tensor

from lissom.artifact.fingerprint import of_files
from lissom.artifact.tensors import read_file, write_tensors
from lissom.errors import ArtifactError, RecipeError
from lissom.files import read_json, replacing

HEAD, LOCK = "journal.json", "lock"
OWN = {HEAD, LOCK, "records", "files", "folders"}  # what is in the folder


class Journal:
    """The finished pieces of one work, by name.

    As a context it is let go of in the end, by whatever end: what is in it stays for the next time, unless there is
    nothing, or the recipe was found to be one that cannot work.
    """

    def __init__(self, folder: Path, lock: io.BytesIO | None = None) -> None:
        self.folder, self.records, self.files = folder, folder / "records", folder / "files"
        self.folders = folder / "folders"
        self._lock = locked(folder) if lock is None else lock
        self._seen = set[str]()  # pieces whose file was compared with its hash

    @classmethod
    def open(cls, folder: Path, asked: Mapping[str, str]) -> Self:
        """The journal in a folder: a new one, or one that was begun for the same.

        Args:
            folder: where it is, or shall be.
            asked: fingerprints of all that the work hangs on, such as those of "model", "data", "recipe" and "code".

        Raises:
            ArtifactError: it was begun for something else, another process works in it, or it cannot be written.
        """
        journal = cls(folder)
        try:
            journal._begin(asked)
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def of_another(cls, folder: Path) -> Self:
        """The journal that another process works in, only to be read."""
        return cls(folder, io.BytesIO())

    @classmethod
    def seen(cls, folder: Path, asked: Mapping[str, str]) -> "Journal | None":
        """The same, where it was begun for this; None where it is not seen, as on another machine, or is another's."""
        head = folder / HEAD
        return cls.of_another(folder) if head.is_file() and read_json(head) == asked else None

    def _begin(self, asked: Mapping[str, str]) -> None:
        head = self.folder / HEAD
        if not (head.is_file() and self.files.is_dir()):  # new, or what is left of one that is finished
            self._make(asked)
        begun = read_json(head)
        changed = [name for name in {**begun, **asked} if begun.get(name) != asked.get(name)]
        if changed:
            raise ArtifactError(
                f"{' and '.join(f'the {name}' for name in changed)} changed since {self.folder} was begun; "
                "give what was given then, or remove that folder to begin anew"
            )
        kept = {place(name) for name in self.names() for place in (self.file, self.place)}
        try:
            for file in set(self.files.iterdir()) - kept:  # half a piece, or a part of a result that was not finished
                file.unlink()
            for place in set(self.folders.iterdir()) - kept:
                shutil.rmtree(place) if place.is_dir() else place.unlink()
        except OSError as error:
            raise refused(self.folder, error) from None

    def _make(self, asked: Mapping[str, str]) -> None:
        """Begin anew; where that cannot be done, nothing is left of it."""
        others = {file.name for file in self.folder.iterdir()} - OWN
        if others:
            with suppress(OSError):
                (self.folder / LOCK).unlink()
            raise ArtifactError(
                f"{self.folder} holds {min(others)!r}, which is none of ours; give a new or an empty folder"
            )
        try:
            for place in (self.records, self.files, self.folders):
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
            with replacing(self.folder / HEAD) as new:
                new.write_text(json.dumps(asked), encoding="utf-8")
        except (OSError, ArtifactError) as error:
            self.remove()
            raise refused(self.folder, error) from None

    def names(self) -> list[str]:
        """The names of the pieces that have a record."""
        return sorted(unquote(file.stem) for file in self.records.glob("*.json"))

    def record(self, name: str) -> Path:
        """Where the record of a piece is kept."""
        return self.records / f"{quote(name, safe='')}.json"

    def file(self, name: str) -> Path:
        """Where the tensors of a piece are kept."""
        return self.files / f"{quote(name, safe='')}.safetensors"

    def place(self, name: str) -> Path:
        """Where a piece is kept that is a folder."""
        return self.folders / quote(name, safe="")

    def keep(
        self,
        name: str,
        record: Mapping[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
        coding: str | None = None,
    ) -> None:
        """Keep a finished piece: what JSON can hold of it, and its tensors, entropy coded where asked.

        Raises:
            ArtifactError: the disk is full or cannot be written; then the piece is not kept, and all others are.
        """
        entry: dict[str, Any] = {"record": dict(record)}
        self._seen.discard(name)
        try:
            if tensors is not None:
                with replacing(self.file(name)) as new:
                    write_tensors(new, tensors, coding)
                entry["file"] = of_files([self.file(name)])
            self._write(name, entry)
        except ArtifactError as error:
            if "file" in entry:  # without its record it is no piece, and takes room
                with suppress(OSError):
                    self.file(name).unlink(missing_ok=True)
            raise self._full(error) from None

    def keep_folder(self, name: str, record: Mapping[str, Any], write: Callable[[Path], object]) -> Path:
        """Keep a finished piece that is a folder, which `write` makes, whole or not at all.

        Raises:
            ArtifactError: the disk is full or cannot be written; then the piece is not kept, and all others are.
        """
        self._seen.discard(name)
        shutil.rmtree(place := self.place(name), ignore_errors=True)  # one that was altered
        try:
            write(place)
            self._write(name, {"record": dict(record), "folder": of_files(within(place))})
        except ArtifactError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise self._full(error) from None
        return place

    def _write(self, name: str, entry: Mapping[str, Any]) -> None:
        """The record, which makes it a piece."""
        with replacing(self.record(name)) as new:
            new.write_text(json.dumps(entry, ensure_ascii=False), encoding="utf-8")
        self._seen.add(name)

    def _full(self, error: ArtifactError) -> ArtifactError:
        """What the disk refused, with what to do."""
        return ArtifactError(f"{error}; make room and do the same again: what was finished waits in {self.folder}")

    def has(self, name: str) -> bool:
        """Whether a piece was kept, and its file or folder is still the one that was written."""
        if name not in self._seen and self.record(name).is_file():
            held = read_json(self.record(name))
            wanted = held.get("file"), held.get("folder")
            found = (wanted[0] and of_files(within(self.file(name))), wanted[1] and of_files(within(self.place(name))))
            if found == wanted:
                self._seen.add(name)
        return name in self._seen

    def read(self, name: str) -> dict[str, Any]:
        """The record of a piece that was kept."""
        found: dict[str, Any] = read_json(self.record(name))["record"]
        return found

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a piece that was kept, mapped into memory."""
        return read_file(self.file(name))

    def become(self, out: Path) -> None:
        """Let the folder of files, in which all is that the result needs, take the result's name; the rest goes.

        Raises:
            ArtifactError: the name is taken by now, or is on another disk.
        """
        try:
            self.files.rename(out)
        except OSError as error:
            raise ArtifactError(f"{out} cannot be made: {error.strerror}; all of it is in {self.files}") from None
        self.remove()

    def remove(self) -> None:
        """Let go of all that was kept; of the folder too, where nobody put something else into it."""
        for name in (HEAD, *sorted(OWN - {HEAD, LOCK}), LOCK):  # the lock last: until then nobody else begins here
            shutil.rmtree(self.folder / name, ignore_errors=True)
            with suppress(OSError):
                (self.folder / name).unlink()
        with suppress(OSError):
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Let others work in the folder."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._lock.closed and (isinstance(error, RecipeError) or not any(self.records.glob("*.json"))):
            self.remove()
        self.close()


def within(place: Path) -> list[Path]:
    """A file, or the files of a folder; nothing where there is none."""
    return [file for file in sorted([place, *place.rglob("*")]) if file.is_file()]


def beside(out: Path) -> Path:
    """Where the work on a result is kept: in a hidden folder beside it, on the same disk."""
    return out.parent / f".{out.name}.work"


def refused(folder: Path, error: OSError | ArtifactError) -> ArtifactError:
    """What the disk refused while something was done in a folder, with what the user can do about it."""
    told = str(error)
    if isinstance(error, OSError):
        told = f"{error.filename or folder} cannot be written: {error.strerror or error}"
    return ArtifactError(f"{told}; make room, or let the work be kept in a folder that you may write to")


def locked(folder: Path) -> BinaryIO:
    """A folder's lock, held until it is closed or the process ends, by whatever end.

    Raises:
        ArtifactError: another process holds it, or the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+b", buffering=0)  # nothing waits to be written when it is closed
    except OSError as error:
        raise refused(folder, error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat()):
            raise FileNotFoundError(0, "another process has just removed it")
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().decode()
        lock.close()
        raise ArtifactError(
            f"{folder} is being worked in by process {holder}; wait until it ends, or choose another name"
        ) from None
    except OSError as error:
        lock.close()
        raise refused(folder, error) from None
    with suppress(OSError):  # it only says to others who works here
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
    return lock
