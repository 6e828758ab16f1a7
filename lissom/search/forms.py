"""The candidates: a visible table of recipes, from safe to bold."""

from collections.abc import Mapping, Sequence

from torch import nn

from lissom.compress import quantizing
from lissom.errors import ModelError
from lissom.formats import CompressedEmbedding
from lissom.models import Checkpoint, compressible, weight_of
from lissom.models.experts import set_apart
from lissom.types import Recipe, Step

GROUPS = (128, 64, 32)


def for_module(model: nn.Module) -> list[Recipe]:
    """Recipes for any module; the integers are grouped as each layer's width allows.

    Raises:
        ModelError: the module has no layer that can be compressed.
    """
    layers = compressible(set_apart(model))
    if not layers:
        raise ModelError(f"{type(model).__name__} has no Linear, Conv or Embedding layer of its own to compress")
    integers = {
        bits: tuple(quantizing(name, layer, bits, True) for name, layer in layers.items()) for bits in (8, 4, 3)
    }
    half = tuple(Step(layers=name, technique="sparsegpt", knobs={"sparsity": 0.5}) for name in prunable(layers))
    shared = {bits: Step(technique="kmeans", knobs={"bits": bits, "rows": 0}) for bits in (4, 3)}
    return [
        Recipe(name="int8", steps=integers[8]),
        Recipe(name="int4", steps=integers[4]),
        Recipe(name="shared 4-bit", steps=(shared[4],)),
        Recipe(name="int3", steps=integers[3]),
        Recipe(name="half pruned, int8", steps=(*half, *integers[8])),
        Recipe(name="half pruned, shared 4-bit", steps=(*half, shared[4])),
        Recipe(name="half pruned, int4", steps=(*half, *integers[4])),
        Recipe(name="half pruned, shared 3-bit", steps=(*half, shared[3])),
        Recipe(name="binary", steps=(Step(technique="binary"),)),
    ]


def prunable(layers: Mapping[str, nn.Module]) -> list[str]:
    """The layers worth pruning; what looks an entry up has no inputs to tell what is listened to."""
    return [name for name, layer in layers.items() if not isinstance(layer, nn.Embedding | CompressedEmbedding)]


def for_language_model(checkpoint: Checkpoint) -> list[Recipe]:
    """Recipes for a language model: its blocks by various techniques, embedding and head in 8 bits.

    Shared weights are not among them as long as they have no kernel of their own: a token would take several times as
    long.
    """
    family = checkpoint.family
    skeleton = checkpoint.skeleton()
    widths = {
        weight_of(layer).shape[1] for name, layer in compressible(skeleton).items() if name.startswith(family.blocks)
    }
    group = next((size for size in GROUPS if all(width % size == 0 for width in widths)), 0)
    ends = [family.embedding] + [family.head] * (not checkpoint.config.tie_word_embeddings)
    int8 = tuple(Step(layers=name, technique="rtn", knobs={"bits": 8}) for name in ends)
    blocks = f"{family.blocks}.*"

    def on_blocks(name: str, steps: Sequence[tuple[str, dict[str, int | float]]]) -> Recipe:
        return Recipe(name=name, steps=(*(Step(layers=blocks, technique=t, knobs=k) for t, k in steps), *int8))

    half = ("sparsegpt", {"sparsity": 0.5})
    return [
        on_blocks("int8", [("rtn", {"bits": 8})]),
        on_blocks("int4", [("gptq", {"bits": 4, "group": group})]),
        on_blocks("int3", [("gptq", {"bits": 3, "group": group})]),
        on_blocks("half pruned, int4", [half, ("gptq", {"bits": 4, "group": group})]),
        on_blocks("int2", [("gptq", {"bits": 2, "group": group})]),
    ]
