"""Fingerprints of what a result hangs on: equal for equal weights, equal data, equal wishes and equal code."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lissom.errors import ArtifactError

PACKAGE = Path(__file__).resolve().parent.parent
SOURCES = {".py", ".c", ".h"}


def of_model(folder: Path) -> str:
    """The fingerprint of a checkpoint: of its config and its weights, every byte of them.

    Raises:
        ArtifactError: a file cannot be read.
    """
    return of_files([folder / "config.json", *sorted(folder.glob("*.safetensors"))])


def of_code(room: str = "") -> str:
    """The fingerprint of this package, or of one of its rooms, and of the torch that it runs on."""
    files = [file for file in sorted((PACKAGE / room).rglob("*")) if file.suffix in SOURCES]
    return of_json([version("torch"), of_files(files)])


def of_files(files: Iterable[Path]) -> str:
    """The fingerprint of what files hold, one after the other.

    Raises:
        ArtifactError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror}; copy or download it again") from None
    return digest.hexdigest()


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The fingerprint of tensors: of their names, their types, their shapes and every number."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_json(content: Any) -> str:
    """The fingerprint of what JSON can hold, in whatever order its entries are."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
