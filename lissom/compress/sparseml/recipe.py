"""A recipe of modifiers, translated: each becomes the steps that come nearest, and what those leave out is named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from lissom.compress.sparseml.form import Asked, is_foreign, modifiers, read_text
from lissom.compress.sparseml.layers import Layers
from lissom.compress.sparseml.prune import PRUNE
from lissom.compress.sparseml.quantize import ORDER, QUANTIZE
from lissom.compress.sparseml.work import Grouped, Handler, Work
from lissom.compress.stream import layer_names
from lissom.errors import RecipeError, meant
from lissom.formats.masked import sparse
from lissom.models import Checkpoint, compressible, weight_of
from lissom.types import Recipe, Step

__all__ = ["Entry", "Imported", "import_recipe", "is_foreign", "read_text"]

HANDLERS: Mapping[str, Handler] = {**PRUNE, **QUANTIZE}
LEARNING = "how to learn is said to `lissom recover`"
LEFT = {  # modifiers that change no weights by themselves
    "DistillationModifier": "the original is learned from by `lissom recover --original`",
    "OutputDistillationModifier": "the original is learned from by `lissom recover --original`",
    "PerLayerDistillationModifier": "the original is learned from by `lissom recover --original`",
    **dict.fromkeys(
        (
            "CyclicLRModifier",
            "EpochRangeModifier",
            "GradualParamModifier",
            "LearningRateFunctionModifier",
            "LearningRateModifier",
            "LoggingModifier",
            "RegularizerModifier",
            "SetLearningRateModifier",
            "SetParamModifier",
            "SetWeightDecayModifier",
            "TrainableParamsModifier",
        ),
        LEARNING,
    ),
}
INSTEAD = {  # of modifiers that have no counterpart
    "GlobalMagnitudePruningModifier": "write sparsities that lissom.allocate_sparsity finds",
    "LayerPruningModifier": "write a step of blocks",
    "LayerThinningModifier": "write a step of channels or heads",
    "LogarithmicEqualizationModifier": "write a step of smooth, or of awq",
    "QuIPModifier": "write a step of rotate_stream, or of hadamard",
    "SpinQuantModifier": "write steps of rotate_stream, rotate and hadamard",
    "StructuredPruningModifier": "write a step of channels or heads",
}
SILENT = ("group", "index")  # arguments that say where a modifier stands
AS_HERE = {"block_size": 128, "sequential_update": True}  # those that say what is done anyhow


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A modifier: where it stands, what it became, what of it was left out, and what is not quite as it was asked."""

    place: str
    modifier: str
    steps: tuple[Step, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line."""
        became = "; ".join(" ".join(f"{k}={v}" for k, v in step.as_dict().items()) for step in self.steps) or "no step"
        left = [f"left out: {', '.join(self.left)}"] if self.left else []
        return "; ".join([f"{self.place}: {self.modifier} -> {became}", *left, *self.notes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A recipe, and what became of each modifier that it was made of."""

    recipe: Recipe
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        """A line for each modifier."""
        return "\n".join(map(str, self.entries))


def import_recipe(source: str | Path | Mapping[str, Any], model: str | Path | nn.Module) -> Imported:
    """A recipe of SparseML or llm-compressor as one of lissom, for a model whose layers it names.

    Args:
        source: a file of YAML or JSON, or the front of a card in Markdown; or what such a file holds.
        model: a module, or the folder (or hub name) of a language model, whose weights are read only for their zeros.

    Raises:
        RecipeError: it cannot be read, holds no modifiers, or one asks for what cannot be done here.
        ModelError: there is no model.
    """
    name = "" if isinstance(source, Mapping) else Path(source).stem
    given = source if isinstance(source, Mapping) else read(Path(source))
    if not is_foreign(given):
        raise RecipeError("recipe: there are no modifiers in it; such stand under 'modifiers', or in stages")
    layers = layers_of(model)
    asked = modifiers(given)
    entries, waiting = list[Entry](), Grouped()
    for place, one in enumerate(asked):
        work = Work(layers=layers, now=one, later=asked[place + 1 :], waiting=waiting)
        entries.append(entry(one, work))
        waiting = work.waiting
    steps = tuple(step for one in entries for step in one.steps)
    return Imported(recipe=Recipe(steps=steps, name=name), entries=tuple(entries))


def read(file: Path) -> Any:
    """What a file holds.

    Raises:
        RecipeError: it cannot be read.
    """
    try:
        return read_text(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{file} cannot be read: {' '.join(str(error).split())}") from None


def layers_of(model: str | Path | nn.Module) -> Layers:
    """The layers of a model that steps can name."""
    if isinstance(model, nn.Module):
        layers = compressible(model)
        return Layers(model=model, names=list(layers), sparse=lambda name: sparse(weight_of(layers[name]).dense()))
    checkpoint = Checkpoint(model)
    made = checkpoint.skeleton()
    return Layers(
        model=made,
        names=layer_names(checkpoint, made),
        sparse=lambda name: sparse(checkpoint.tensor(f"{name}.weight")),
    )


def entry(asked: Asked, work: Work) -> Entry:
    """What becomes of a modifier.

    Raises:
        RecipeError: it has no counterpart.
    """
    if asked.name in LEFT:
        return Entry(place=asked.place, modifier=asked.name, notes=(LEFT[asked.name],))
    if asked.name not in HANDLERS:
        known: Sequence[str] = sorted(HANDLERS)
        instead = INSTEAD.get(asked.name, f"read are {', '.join(known)}{meant(asked.name, known)}")
        raise RecipeError(f"recipe: {asked.name} of {asked.place} has no counterpart; {instead}")
    args = {name: value for name, value in asked.args.items() if name not in SILENT}
    args = {name: value for name, value in args.items() if value is not None or name == ORDER}
    steps = HANDLERS[asked.name](args, work)
    left = [f"{name}={value!r}" for name, value in args.items() if AS_HERE.get(name) != value]
    return Entry(place=asked.place, modifier=asked.name, steps=tuple(steps), left=tuple(left), notes=tuple(work.notes))
