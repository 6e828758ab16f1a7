"""Language models: written part by part as they are compressed."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lissom.artifact.coding import check as check_coding
from lissom.artifact.manifest import building, write_json, write_manifest
from lissom.artifact.tensors import parts_of, write_tensors
from lissom.compress.resident import conduct
from lissom.compress.stream import Piece
from lissom.errors import ModelError
from lissom.models import Checkpoint
from lissom.models.checkpoint import INDEX, MARK, possible, read_config, skeleton
from lissom.models.form import form_of
from lissom.models.resize import matrix_shapes, uniform
from lissom.models.tokenizer import tokenizer_of
from lissom.types import Recipe

CARRIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
    "*.model",
)
SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads")


def compress_checkpoint(
    model: str | Path,
    recipe: Recipe,
    windows: Int[Tensor, "n t"],
    out: str | Path,
    *,
    max_ram: int | None = None,
    entropy_coding: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Path:
    """Compress a language model from its folder (or hub name) into a new folder, a block in memory at a time.

    Only where a step must see the whole model (`blocks`) is it held whole.

    Args:
        model: a Hugging Face checkpoint of a known family.
        recipe: what to do to which layers.
        windows: n windows of t tokens to calibrate on; none (0 rows) where the recipe needs no data.
        out: the folder to make; it appears when it is complete.
        max_ram: bytes of memory that the process may take; by default as many as it needs.
        entropy_coding: "deflate" for tensors coded on disk and decoded when they are loaded.
        progress: told the name of each part as it is done.

    Raises:
        ModelError, RecipeError, DataError, ArtifactError: with what is wrong and what to do.
    """
    check_coding(entropy_coding)
    checkpoint, out = Checkpoint(model), Path(out)
    with building(out) as folder:
        parts, told = conduct(checkpoint, recipe, windows, max_ram)
        write_parts(checkpoint, recipe, parts, folder, told=told, entropy_coding=entropy_coding, progress=progress)
    return out


def write_parts(
    checkpoint: Checkpoint,
    recipe: Recipe,
    parts: Iterable[Piece],
    folder: Path,
    *,
    told: Mapping[str, Any] = MappingProxyType({}),
    entropy_coding: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Write the compressed parts of a language model, and all that belongs to them, into an empty folder.

    `told` is what its config has to say that the original's did not.
    """
    weights: dict[str, Any] = {}
    index: dict[str, str] = {}
    aliases: dict[str, str] = {}
    written = WeakIdKeyDictionary()  # the tensors that are still in memory: a shared one may come again
    shapes: dict[str, tuple[int, ...]] = {}
    size, numbers = 0, itertools.count(1)
    for piece in parts:
        file = f"model-{next(numbers):05d}.safetensors"
        tensors = dict(piece.tensors)
        shapes |= {name: tuple(t.shape) for name, t in tensors.items()} | matrix_shapes(piece.weights)
        for layer, weight in piece.weights.items():
            weights[layer] = weight.spec()
            new, same = once(parts_of(layer, weight), written)
            tensors, aliases = tensors | new, aliases | same
        size += write_tensors(folder / file, tensors, entropy_coding)
        index |= dict.fromkeys(tensors, file)
        progress(piece.name)
        del piece, tensors  # none of it waits while the next one is made
    carry(checkpoint.folder, folder, {**told, **uniform(checkpoint.config, checkpoint.family, shapes)})
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": index})
    content = {"recipe": recipe.as_dict(), "weights": weights, "aliases": aliases, **alone(checkpoint, folder)}
    write_manifest(folder, "language_model", content)


def alone(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """What serves the model of a folder without transformers; nothing where its tokenizer needs that."""
    try:
        tokenizer = tokenizer_of(checkpoint.tokenizer(), folder)
    except (ModelError, ImportError):  # there is none, or it needs a package that is not here
        return {}
    form = form_of(skeleton(read_config(folder, compressed=True)))
    return {} if tokenizer is None else {"form": form, "tokenizer": tokenizer}


def once(
    tensors: Mapping[str, Tensor], written: MutableMapping[Tensor, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that are not among those `written` before, and under which name the others are."""
    first = {name: written.setdefault(tensor, name) for name, tensor in tensors.items()}
    new = {name: tensor for name, tensor in tensors.items() if first[name] == name}
    return new, {name: same for name, same in first.items() if same != name}


def carry(source: Path, folder: Path, told: Mapping[str, Any]) -> None:
    """Copy the tokenizer, and the config with what is `told` anew.

    A mark in it keeps other loaders from filling the gaps with noise. Sizes that transformers would refuse stay as they
    were (a width must be a multiple of the heads): the tensors tell them too.
    """
    for pattern in CARRIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if not possible({**config, **told}):
        told = {name: value for name, value in told.items() if name not in SIZES}
    write_json(folder / "config.json", {**config, **told, "quantization_config": MARK})
