"""The folder on disk: config.json, *.safetensors, lissom.json with a hash of every file. Never a pickle."""

from lissom.artifact.folder import Opened, load, open_folder
from lissom.artifact.language import compress_checkpoint
from lissom.artifact.manifest import MANIFEST, add_file, annotate, read_manifest, verify
from lissom.artifact.module import save

__all__ = [
    "MANIFEST",
    "Opened",
    "add_file",
    "annotate",
    "compress_checkpoint",
    "load",
    "open_folder",
    "read_manifest",
    "save",
    "verify",
]
