"""The shapes of a model by its folder: a config is enough; where there are weights, their bits are read as well."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lissom.errors import ArtifactError, RecipeError
from lissom.models.checkpoint import find, read_config
from lissom.models.families import family_of
from lissom.plan.shapes import Shapes

BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0}


def read_shapes(model: str | Path, bits: float | None = None) -> Shapes:
    """The shapes of a causal language model.

    Args:
        model: a folder with a config.json, of Hugging Face or lissom, with weights or without; or a hub name.
        bits: of a weight in the blocks, instead of what is stored or what the config says.

    Raises:
        ModelError: there is no config, or its architecture is unknown.
        ArtifactError: a file of weights is cut short.
        RecipeError: the bits are none.
    """
    if bits is not None and not 0 < bits <= 32:
        raise RecipeError(f"bits: {bits} of a weight; give more than 0 and at most 32")
    folder = Path(model)
    folder = folder if (folder / "config.json").is_file() else find(model)
    config: Any = read_config(folder, compressed=True)
    shapes = of_config(config)
    inside, outside = stored_bits(folder, shapes, config)
    return replace(shapes, bits=inside if bits is None else bits, end_bits=outside)


def of_config(config: Any) -> Shapes:
    """The shapes that a config of transformers says."""
    family = family_of(config.model_type)
    bits = BITS.get(str(config.dtype).removeprefix("torch."), 16.0)
    blocks, heads = config.num_hidden_layers, config.num_attention_heads
    sparse = sparse_blocks(config) if family.experts else 0
    experts = {}
    if sparse:
        chosen = {"chosen": config.num_experts_per_tok, "expert_inner": config.moe_intermediate_size}
        experts = {"sparse": sparse, "experts": config.num_experts, **chosen}
    return Shapes(
        blocks=blocks,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        inner=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        bits=bits,
        end_bits=bits,
        original_bits=bits,
        **experts,
    )


def sparse_blocks(config: Any) -> int:
    """How many blocks have experts."""
    every, dense = config.decoder_sparse_step, set(config.mlp_only_layers or ())
    numbers = range(config.num_hidden_layers)
    return sum(n not in dense and config.num_experts > 0 and (n + 1) % every == 0 for n in numbers)


def stored_bits(folder: Path, shapes: Shapes, config: Any) -> tuple[float, float]:
    """Bits of a weight in the blocks, and outside of them, as the files have them, else as the config says."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return shapes.bits, shapes.end_bits
    prefix = f"{family_of(config.model_type).blocks}."
    inside = outside = 0
    for file in files:
        for name, nbytes in tensors_of(file).items():
            inside, outside = (inside + nbytes, outside) if name.startswith(prefix) else (inside, outside + nbytes)
    return 8 * inside / (shapes.blocks * shapes.block_weights), 8 * outside / shapes.end_weights


def tensors_of(file: Path) -> Mapping[str, int]:
    """The bytes of each matrix of a safetensors file, by its head alone.

    Raises:
        ArtifactError: it has none that can be read.
    """
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            head = json.loads(stream.read(min(size, file.stat().st_size)))
            tensors = [(name, told) for name, told in head.items() if name != "__metadata__"]
            spans = {name: told["data_offsets"] for name, told in tensors if len(told["shape"]) > 1}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(f"{file} cannot be read: it has no head; copy or download it again") from None
    return {name: end - begin for name, (begin, end) in spans.items()}
