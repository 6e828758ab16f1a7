"""Language models, read back layer by layer: as transformers builds them, or bare."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lissom.artifact.foreign import masked, pruned, taken, told
from lissom.artifact.tensors import check_layers, read_tensors, take_weight
from lissom.errors import ArtifactError
from lissom.formats import Dense, Weight
from lissom.models import compressible, replace
from lissom.models.attention import attend_in_8_bits
from lissom.models.checkpoint import check_shapes, read_config, skeleton
from lissom.models.families import at, family_of
from lissom.models.form import Bare, form_of
from lissom.models.resize import matrix_shapes, resize

SUFFIX = ".gguf"
Read = tuple[Callable[[], Any], dict[str, Tensor], dict[str, Weight]]


def build_language_model(
    folder: Path, manifest: Mapping[str, Any], *, bare: bool = False, narrow: bool = False
) -> nn.Module:
    """The model of a folder, or of a file of GGUF, in float32 but for its compressed layers.

    `manifest` is empty for a plain checkpoint, and for one that another tool has compressed (`foreign.py`). A `bare`
    model has its matrices of 16 bits as they are stored; where the manifest does not say its form, transformers does.
    In a `narrow` one layers with such a matrix hold it as `Dense`. Where the manifest says that keys and values are
    held in 8 bits, a model of transformers attends as the engine then does.

    Raises:
        ArtifactError: tensors are missing.
    """
    form = manifest.get("form") if bare else None
    configured, tensors, theirs = gguf(folder) if folder.suffix == SUFFIX else checkpoint(folder, manifest)
    config: Any = SimpleNamespace(**form["config"]) if form else configured()
    family = family_of(config.model_type)
    tensors |= {name: tensors[same] for name, same in manifest.get("aliases", {}).items()}
    weights = theirs | {name: take_weight(name, spec, tensors) for name, spec in manifest.get("weights", {}).items()}
    held = in_16_bits if bare or narrow else never
    state = {name: tensor if held(tensor) else tensor.float() for name, tensor in tensors.items()}
    if config.tie_word_embeddings and family.embedding in weights:
        weights[family.head] = weights[family.embedding]
    elif config.tie_word_embeddings:
        state[f"{family.head}.weight"] = state[f"{family.embedding}.weight"]
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()} | matrix_shapes(weights)

    def empty() -> nn.Module:
        """What transformers builds; layers of one model may differ in shape, and the tensors say in which."""
        made = skeleton(configured()).float()  # which is what is computed in, whatever is stored
        if manifest:
            resize(made, shapes)
        return made

    model = Bare(form, shapes, empty) if form else empty()
    if bare and not form:
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        model = Bare(form_of(model), wanted, empty)
    layers = compressible(model)
    if not manifest and pruned(folder):
        tied = family.head if config.tie_word_embeddings else ""
        found = masked(
            tensors, [name for name, layer in layers.items() if isinstance(layer, nn.Linear) and name != tied]
        )
        weights |= found
        state = {name: tensor for name, tensor in state.items() if name.removesuffix(".weight") not in found}
    if narrow:
        weights |= as_stored(state, layers)
        state = {name: tensor.float() for name, tensor in state.items()}
    check_layers(folder, "config.json", weights, layers)
    replace(model, weights, layers, trainable=False)
    check_shapes(folder, "config.json", state, model)
    missing, _ = model.load_state_dict(state, strict=False, assign=True)
    missing = [name for name in missing if ".matrix." not in name]
    if missing:
        raise ArtifactError(f"{folder} has no tensor {missing[0]!r}; the checkpoint is incomplete")
    if config.tie_word_embeddings and family.embedding not in weights:
        at(model, family.head).weight = at(model, family.embedding).weight  # one parameter, not two of one tensor
    return model.eval() if bare or manifest.get("cache") != "int8" else attend_in_8_bits(model.eval())


def checkpoint(folder: Path, manifest: Mapping[str, Any]) -> Read:
    """Of a folder: what makes its config, its tensors, and those of its matrices that another tool has compressed."""
    ours = "weights" in manifest
    how = None if ours else told(folder)
    configured = partial(read_config, folder, compressed=ours, method=None if how is None else how["quant_method"])
    tensors = read_tensors(folder, manifest.get("weights", {}))
    theirs, tensors = ({}, tensors) if how is None else taken(tensors, how)
    return configured, tensors, theirs


def gguf(file: Path) -> Read:
    """The same of a file of GGUF."""
    from lissom.artifact.gguf import read

    config, tensors, weights = read(file)
    return partial(copy.deepcopy, config), tensors, weights


def in_16_bits(tensor: Tensor) -> bool:
    """Whether it is a matrix of 16 bits, which layers read as it is; what is computed with it is float32."""
    return tensor.dim() == 2 and tensor.dtype in (torch.bfloat16, torch.float16)


def never(tensor: Tensor) -> bool:
    """No tensor stays as it is stored."""
    return False


def as_stored(state: dict[str, Tensor], layers: Mapping[str, nn.Module]) -> dict[str, Dense]:
    """The matrices of 16 bits of layers, by the layer's name, taken out of a state; a shared one stays one."""
    names = [name for name in layers if f"{name}.weight" in state and in_16_bits(state[f"{name}.weight"])]
    held: dict[int, Dense] = {}
    return {name: held.setdefault(id(m := state.pop(f"{name}.weight")), Dense(values=m)) for name in names}
