"""What a runtime takes of a compressed model: each layer as it is, or the nearest that can be written there.

A target knows which weights it can hold, and how the others come nearest. Both are weights in lissom's own formats, so
that what a hand-over costs in quality is measured here, before anything leaves.
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lissom.artifact.folder import Opened, open_folder
from lissom.export.even import widest
from lissom.formats import CompressedLayer, Weight
from lissom.models import compressible, replace
from lissom.models.families import family_of
from lissom.models.layers import weight_of
from lissom.models.resize import matrix_shapes, uniform

Holds = Callable[[Weight, nn.Module], "Form | None"]  # the form in which a layer's weight stays what it is
Nearest = Callable[[Weight, nn.Module], Weight]
Together = Callable[["Given", dict[str, Weight]], dict[str, Weight]]  # for layers that a runtime wants alike
Forms = Callable[["Given", Mapping[str, Weight]], Mapping[str, "Form"]]  # as they are written, blocks made even


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a runtime writes a weight: what it calls that, and bits for each weight, scales counted."""

    name: str
    bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A layer that is handed over: what it was, the form that it takes there, its bytes, and what that loses.

    `error` is ‖V - W‖ / ‖W‖ of the two matrices; 0 where the layer stays as it is.
    """

    layer: str
    own: str
    form: str
    nbytes: int
    error: float

    def __str__(self) -> str:
        """One line."""
        loss = f", {self.error:.2%} from what it was" if self.error else ""
        return f"{self.layer}: {self.own} -> {self.form}{loss}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """An opened model, apart: matrices by layer, and tensors that are no matrices of layers.

    `same` says of each layer by which one's name its matrix goes, which several may share. `sizes` are those that each
    tensor has to take; `config` is None of what is no language model. That of a language model says what it would in
    one whose blocks are equally wide, as `sizes` are.
    """

    opened: Opened
    weights: Mapping[str, Weight]
    same: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, tuple[int, ...]]
    config: Any = None

    @classmethod
    def of(cls, folder: str | Path, model: nn.Module | None = None) -> "Given":
        """What a folder of ours, or of Hugging Face, holds; a layer that shares its matrix is not named twice.

        Raises:
            ModelError: there is no model in it.
            ArtifactError: a file is missing or altered, or the module's class is needed.
        """
        opened = open_folder(folder, base=copy.deepcopy(model), narrow=True)
        layers = compressible(opened.model)
        held: dict[int, str] = {}
        same = {
            name: held.setdefault(id(layer.matrix if isinstance(layer, CompressedLayer) else layer.weight), name)
            for name, layer in layers.items()
        }
        weights = {name: weight_of(layers[name]) for name in held.values()}
        own = tuple(f"{name}.{part}" for name in layers for part in ("matrix.", "weight"))
        tensors = {name: one for name, one in opened.model.state_dict().items() if not name.startswith(own)}
        sizes = {name: tuple(one.shape) for name, one in tensors.items()} | matrix_shapes(weights)
        if not is_language(opened):
            return cls(opened=opened, weights=weights, same=same, tensors=tensors, sizes=sizes)
        config: Any = copy.deepcopy(opened.model.config)
        family = family_of(config.model_type)
        sizes = widest(sizes, family)
        for name, size in uniform(config, family, sizes).items():
            setattr(config, name, size)
        return cls(opened=opened, weights=weights, same=same, tensors=tensors, sizes=sizes, config=config)

    @property
    def model(self) -> nn.Module:
        """It, whole."""
        return self.opened.model

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.opened.folder

    @property
    def tokenizer(self) -> Any:
        """That of a language model."""
        return self.opened.tokenizer

    def changed(self, taken: Mapping[str, Weight]) -> nn.Module:
        """The model with its weights as a target takes them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, on how its own graphs are copied
            other = copy.deepcopy(self.model)
        new = {name: taken[one] for name, one in self.same.items() if taken[one] is not self.weights[one]}
        replace(other, new, compressible(other), trainable=False)
        return other

    def handed(
        self, holds: Holds, nearest: Nearest, together: Together, forms: Forms | None = None
    ) -> tuple[dict[str, Weight], list[Handed]]:
        """Each weight as a target takes it, and what there is to say of each layer.

        `forms` is for a target that makes blocks even: it says how weights are written then.
        """
        layers, told = compressible(self.model), list[Handed]()
        found = {n: w if holds(w, layers[n]) else nearest(w, layers[n]) for n, w in self.weights.items()}
        taken = together(self, found)
        even = None if forms is None else forms(self, taken)
        for name, weight in self.weights.items():
            new = taken[name]
            form = holds(new, layers[name]) if even is None else even[name]
            assert form is not None, f"{name}: what comes nearest cannot be held either"
            sizes = weight.shape if even is None else self.sizes[f"{name}.weight"]
            nbytes = math.ceil(form.bits * math.prod(sizes) / 8)
            error = 0.0 if new is weight else apart(weight, new)
            told.append(Handed(layer=name, own=described(weight), form=form.name, nbytes=nbytes, error=error))
        return taken, told


def is_language(opened: Opened) -> bool:
    """Whether it is a language model."""
    return opened.tokenizer is not None and hasattr(opened.model, "config")


def described(weight: Weight) -> str:
    """A weight's format in a few words."""
    spec = dict(weight.spec())
    told = [f"{spec['bits']} bits"] if "bits" in spec else []
    told += [f"groups of {spec['group']}"] if "group" in spec else []
    return ", ".join([str(spec.get("format", type(weight).__name__.lower())), *told])


def apart(weight: Weight, other: Weight) -> float:
    """How far two matrices are from each other, as a share of the first."""
    w, v = weight.dense(), other.dense()
    return float((w - v).norm() / w.norm().clamp(min=torch.finfo(torch.float32).tiny))
