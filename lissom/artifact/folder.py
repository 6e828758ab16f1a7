"""Opening a folder, whatever it holds."""

import copy
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.artifact.manifest import MANIFEST, read_manifest
from lissom.files import read_json

if TYPE_CHECKING:
    from torch import nn

EVIDENCE = ("certificate", "frontier", "parity", "machine", "target", "recipe", "files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model ready to run, with what is known of it.

    `tokenizer` is None unless it is a language model: one of transformers, or, of a bare model, a `Tokenizer`.
    `manifest` is empty for a checkpoint that is not lissom's.
    """

    model: "nn.Module"
    tokenizer: Any
    manifest: Mapping[str, Any]
    folder: Path

    @property
    def signature(self) -> Mapping[str, Any] | None:
        """Names, types and shapes of inputs and outputs, where the folder says them."""
        return self.manifest.get("signature")

    @property
    def cache(self) -> str:
        """How a language model's keys and values were held when it was certified; "auto" is as it was trained."""
        return str(self.manifest.get("cache", "auto"))

    @property
    def evidence(self) -> Mapping[str, Any]:
        """What the folder proves about the model, and where it was found out: certificate, parity, recipe, hashes.

        Of the points of the frontier it has the bytes, the drop and the milliseconds.
        """
        report = self.manifest.get("report", {})
        points = [
            {"name": one["name"], "nbytes": one["nbytes"], "drop": one["drop"]["value"], "ms": one["latency"]["value"]}
            for one in report.get("points", ())
        ]
        told = {**self.manifest, **{name: report.get(name) for name in ("machine", "target")}}
        told["frontier"] = points or None
        return {name: told[name] for name in EVIDENCE if told.get(name) is not None}


def open_folder(
    model: str | Path, *, base: "nn.Module | None" = None, bare: bool = False, narrow: bool = False
) -> Opened:
    """Open a lissom folder, whose hashes are checked first, a Hugging Face checkpoint, or a file of GGUF.

    Args:
        model: the folder or file, or the name of a checkpoint on the hub.
        base: an instance of the class of a module that is not a language model.
        bare: for the engine alone: a language model is a `Bare` one, its matrices of 16 bits as they are stored. Where
            the folder says all of it, no code of transformers is needed, and it opens sooner.
        narrow: matrices of 16 bits of a language model stay as they are stored, mapped into memory, and become float32
            only as they are multiplied with: half of the memory, the same numbers.

    Raises:
        ModelError: there is no model in it.
        ArtifactError: a file is missing or altered, or the module's class is needed and `base` not given.
    """
    folder = Path(model)
    with ThreadPoolExecutor(1) as thread:  # hashes are computed while PyTorch is imported
        read = thread.submit(read_manifest, folder) if (folder / MANIFEST).is_file() else None
        from lissom.artifact.reading import SUFFIX, build_language_model
        from lissom.models.checkpoint import find, read_tokenizer
        from lissom.models.text_encoder import TextEncoder, is_text_encoder
    manifest = {} if read is None else read.result()
    if manifest.get("kind") == "module":
        from lissom.artifact.module import build_module  # here, for it brings every technique

        found = build_module(folder, manifest, base)
        if "encoder" in manifest:
            found.tokenizer = own_tokenizer(folder, manifest)
        return Opened(model=found, tokenizer=None, manifest=manifest, folder=folder)
    if folder.suffix == SUFFIX and folder.is_file():
        from lissom.artifact.gguf import tokenizer_of

        read_model = build_language_model(folder, {}, bare=bare, narrow=narrow)
        return Opened(model=read_model, tokenizer=tokenizer_of(folder), manifest={}, folder=folder)
    folder = find(model)
    if not manifest and is_text_encoder(folder):
        encoder = TextEncoder.read(folder)
        return Opened(model=encoder, tokenizer=None, manifest={"signature": encoder.signature}, folder=folder)
    language_model = build_language_model(folder, manifest, bare=bare, narrow=narrow)
    alone = bare and "tokenizer" in manifest
    tokenizer = own_tokenizer(folder, manifest) if alone else read_tokenizer(folder)
    return Opened(model=language_model, tokenizer=tokenizer, manifest=manifest, folder=folder)


def open_tokenizer(model: str | Path) -> Any:
    """The tokenizer of a folder, for a program that leaves the model to another; None where that takes no text.

    No hash is checked: who opens the model does that.

    Raises:
        ModelError: there is no model in it.
    """
    folder = Path(model)
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    if manifest.get("kind") == "module" and "encoder" not in manifest:
        return None
    if manifest.get("kind") == "module" or "tokenizer" in manifest:
        return own_tokenizer(folder, manifest)
    from lissom.models.checkpoint import find, read_tokenizer

    return read_tokenizer(find(model))


def own_tokenizer(folder: Path, manifest: Mapping[str, Any]) -> Any:
    """The tokenizer that a folder of ours carries: by itself, if it can be so, or as transformers reads it."""
    if "tokenizer" in manifest:
        from lissom.models.tokenizer import Tokenizer

        return Tokenizer.read(folder, manifest["tokenizer"])
    from lissom.models.checkpoint import read_tokenizer

    return read_tokenizer(folder) if any(folder.glob("tokenizer*.json")) else None


def load(folder: str | Path, *, model: "nn.Module | None" = None, trainable: bool = False) -> "nn.Module":
    """The model that a folder holds, in evaluation mode, bit for bit as it was saved.

    Args:
        folder: what `save`, `compress_checkpoint` or the command line wrote, or a Hugging Face checkpoint.
        model: an instance of the module's own class, for a class that is not torch.nn's; it is left as it is. Without
            it such a module runs from the graph that the folder carries, if it carries one.
        trainable: whether the compressed layers get parameters to train, rather than only their packed weights.

    Raises:
        ModelError: there is no model in it.
        ArtifactError: a file is missing or altered, or the class is needed.
    """
    from lissom.formats import unfreeze

    opened = open_folder(folder, base=copy.deepcopy(model)).model
    return unfreeze(opened) if trainable else opened
