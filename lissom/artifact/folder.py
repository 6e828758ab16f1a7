"""Opening a folder, whatever it holds."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from lissom.artifact.language import build_language_model
from lissom.artifact.manifest import MANIFEST, read_manifest
from lissom.artifact.module import build_module
from lissom.models.checkpoint import find, read_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model ready to run, with what is known of it.

    `tokenizer` is None unless it is a language model; `manifest` is empty for a checkpoint that is not lissom's.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    manifest: Mapping[str, Any]
    folder: Path

    @property
    def signature(self) -> Mapping[str, Any] | None:
        """Names, types and shapes of inputs and outputs, where the folder says them."""
        return self.manifest.get("signature")

    @property
    def evidence(self) -> Mapping[str, Any]:
        """What the folder proves about the model: certificate, report, recipe, hashes."""
        return {name: self.manifest[name] for name in ("certificate", "recipe", "files") if name in self.manifest}


def open_folder(model: str | Path, *, base: nn.Module | None = None) -> Opened:
    """Open a lissom folder or a Hugging Face checkpoint; the hashes of a lissom folder are checked first.

    Raises:
        ModelError: there is no model in it.
        ArtifactError: a file is missing or altered, or the module's class is needed and `base` not given.
    """
    folder = Path(model)
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    if manifest.get("kind") == "module":
        return Opened(model=build_module(folder, manifest, base), tokenizer=None, manifest=manifest, folder=folder)
    folder = find(model)
    language_model = build_language_model(folder, manifest)
    return Opened(model=language_model, tokenizer=read_tokenizer(folder), manifest=manifest, folder=folder)


def load(folder: str | Path, *, model: nn.Module | None = None, trainable: bool = False) -> nn.Module:
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
