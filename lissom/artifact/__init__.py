"""The folder on disk: config.json, *.safetensors, lissom.json with a hash of every file. Never a pickle."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lissom.artifact.evidence import objection
from lissom.artifact.folder import Opened, load, open_folder, open_tokenizer
from lissom.artifact.manifest import MANIFEST, add_file, annotate, read_manifest, verify

if TYPE_CHECKING:
    from lissom.artifact.language import compress_checkpoint
    from lissom.artifact.module import save

__all__ = [
    "MANIFEST",
    "Opened",
    "add_file",
    "annotate",
    "compress_checkpoint",
    "load",
    "objection",
    "open_folder",
    "open_tokenizer",
    "read_manifest",
    "save",
    "verify",
]

HOMES = {
    "compress_checkpoint": "lissom.artifact.language",
    "save": "lissom.artifact.module",
}  # what opens needs neither


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
