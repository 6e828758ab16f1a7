"""Language models: written part by part as they are compressed, read back layer by layer."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from lissom.artifact.manifest import building, write_json, write_manifest
from lissom.artifact.tensors import check_layers, parts_of, read_tensors, take_weight, write_tensors
from lissom.compress import replace, stream_checkpoint
from lissom.errors import ArtifactError
from lissom.models import Checkpoint, compressible
from lissom.models.checkpoint import INDEX, MARK, check_shapes, read_config, skeleton
from lissom.models.families import family_of
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


def compress_checkpoint(
    model: str | Path,
    recipe: Recipe,
    windows: Int[Tensor, "n t"],
    out: Path,
    *,
    progress: Callable[[str], None] = lambda name: None,
) -> Path:
    """Compress a language model from its folder (or hub name) into a new folder, never holding it whole.

    Args:
        model: a Hugging Face checkpoint of a known family.
        recipe: what to do to which layers.
        windows: n windows of t tokens to calibrate on; none (0 rows) where the recipe needs no data.
        out: the folder to make; it appears when it is complete.
        progress: told the name of each part as it is done.

    Raises:
        ModelError, RecipeError, ArtifactError: with what is wrong and what to do.
    """
    checkpoint = Checkpoint(model)
    weights: dict[str, Any] = {}
    index: dict[str, str] = {}
    size = 0
    with building(out) as folder:
        for number, piece in enumerate(stream_checkpoint(checkpoint, recipe, windows), 1):
            file = f"model-{number:05d}.safetensors"
            tensors = dict(piece.tensors)
            for layer, weight in piece.weights.items():
                weights[layer] = weight.spec()
                tensors |= parts_of(layer, weight)
            write_tensors(folder / file, tensors)
            index |= dict.fromkeys(tensors, file)
            size += sum(tensor.nbytes for tensor in tensors.values())
            progress(piece.name)
        carry(checkpoint.folder, folder)
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": index})
        write_manifest(folder, "language_model", {"recipe": recipe.as_dict(), "weights": weights})
    return out


def carry(source: Path, folder: Path) -> None:
    """Copy the tokenizer, and the config with a mark that keeps other loaders from filling the gaps with noise."""
    for pattern in CARRIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "quantization_config": MARK})


def build_language_model(folder: Path, specs: Mapping[str, Any]) -> nn.Module:
    """The model of a folder, in float32 but for its compressed layers; `specs` is empty for a plain checkpoint.

    Raises:
        ArtifactError: tensors are missing.
    """
    config = read_config(folder, compressed=bool(specs))
    model, family = skeleton(config), family_of(config.model_type)
    tensors = read_tensors(folder)
    weights = {name: take_weight(name, spec, tensors) for name, spec in specs.items()}
    state = {name: tensor.float() for name, tensor in tensors.items()}
    if config.tie_word_embeddings and family.embedding in weights:
        weights[family.head] = weights[family.embedding]
    elif config.tie_word_embeddings:
        state[f"{family.head}.weight"] = state[f"{family.embedding}.weight"]
    layers = compressible(model)
    check_layers(folder, "config.json", weights, layers)
    replace(model, weights, layers, trainable=False)
    check_shapes(folder, "config.json", state, model)
    missing, _ = model.load_state_dict(state, strict=False, assign=True)
    missing = [name for name in missing if ".matrix." not in name]
    if missing:
        raise ArtifactError(f"{folder} has no tensor {missing[0]!r}; the checkpoint is incomplete")
    return model.eval()
