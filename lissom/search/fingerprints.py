"""Fingerprints: equal for equal weights, equal data, equal code."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = Path(__file__).resolve().parent.parent


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def of_files(files: Iterable[Path]) -> str:
    """Of the bytes of some files."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def of_code(room: str = "") -> str:
    """Of all code of the package, or of one of its rooms, and of PyTorch."""
    kinds = {".py", ".c", ".h"}
    files = sorted(file for file in (PACKAGE / room).rglob("*") if file.suffix in kinds)
    return hashlib.sha256(f"{torch.__version__} {of_files(files)}".encode()).hexdigest()
