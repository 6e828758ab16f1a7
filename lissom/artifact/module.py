"""Any module: written with its weights in their formats, read back by itself, by its class, or by its graph.

A module made of torch.nn layers is described by their names and arguments. Of another class the folder can carry the
exported graph, whose weights are the ones in the safetensors file: nothing is stored twice.
"""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lissom.artifact.architecture import construct, describe
from lissom.artifact.coding import check as check_coding
from lissom.artifact.datatypes import DATATYPES, NAMES
from lissom.artifact.graph import GRAPH, export, run_graph, signature_of, without_caches
from lissom.artifact.manifest import building, write_manifest
from lissom.artifact.tensors import check_layers, parts_of, read_tensors, take_weight, write_tensors
from lissom.calibrate import Batch
from lissom.calibrate.besides import read_besides
from lissom.calibrate.data import moved
from lissom.calibrate.norms import batch_norms
from lissom.errors import ArtifactError
from lissom.formats import CompressedLayer, Frozen, Weight, freeze, wrap
from lissom.models import compressible, replace
from lissom.models.apart import apart, put_back
from lissom.models.checkpoint import check_shapes
from lissom.models.families import put
from lissom.models.recurrent import PARTS, Steps
from lissom.models.resize import matrix_shapes, resize
from lissom.models.text_encoder import TextEncoder
from lissom.models.tokenizer import tokenizer_of
from lissom.techniques.prune.blocks import Through

FILE = "model.safetensors"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    example: Batch | None = None,
    entropy_coding: str | None = None,
    **notes: Any,
) -> Path:
    """Write a module into a new folder, each weight in its format.

    Args:
        model: any module, compressed or not, trained further or not; it is left as it is.
        folder: the folder to make; it appears when it is complete.
        example: a batch that the module takes. With it the folder says what goes in and out, which serving needs, and
            carries the graph of a class that is not torch.nn's, so that it runs without its code.
        entropy_coding: "deflate" for tensors coded on disk and decoded when they are loaded.
        notes: what else to write down in lissom.json (recipe, report, certificate).

    Raises:
        ArtifactError: the name is taken, the disk is full, or the module cannot be exported.
    """
    check_coding(entropy_coding)
    frozen = put_back(freeze(apart(copy.deepcopy(model)))).eval()
    architecture = describe(frozen)
    content: dict[str, Any] = {"class": type(model).__name__, "weights": specs(frozen), "aliases": aliases(frozen)}
    floats = {name: NAMES[layer.dtype] for name, layer in compressed(frozen).items() if layer.dtype != torch.float32}
    if floats:
        content["floats"] = floats
    removed = {name: part.nested for name, part in frozen.named_modules() if isinstance(part, Through)}
    if removed:
        content["removed"] = removed
    tensors = stored_state(frozen)
    frozen.cpu()  # where it will be opened
    if example is not None:
        example = moved(example, torch.device("cpu"))
        without_caches(frozen)
    with building(Path(folder)) as building_folder:
        if architecture is not None:
            content["architecture"] = architecture
        if isinstance(frozen, TextEncoder):
            content |= described_encoder(frozen, building_folder)
        elif example is not None:
            content["signature"] = signature_of(frozen, example)
        if example is not None and architecture is None and not isinstance(frozen, TextEncoder):
            layers = compressible(frozen) | batch_norms(frozen)
            read = read_besides(frozen, layers, example)
            described = {name: describe(layer) for name, layer in layers.items() if name not in read}
            content["layers"] = {name: layer for name, layer in described.items() if layer is not None}
            content["steps"] = {name: part.told for name, part in steps_of(frozen, content["layers"]).items()}
            inside = {name for name in content["layers"] if name.rpartition(".")[0] in content["steps"]}
            operators = [name for name in (*content["layers"], *content["steps"]) if name not in inside]
            tensors |= export(frozen, example, building_folder / GRAPH, operators)
        write_tensors(building_folder / FILE, tensors, entropy_coding)
        write_manifest(building_folder, "module", {**content, **notes})
    return Path(folder)


def build_module(folder: Path, manifest: Mapping[str, Any], base: nn.Module | None) -> nn.Module:
    """The module of a folder, in evaluation mode.

    Raises:
        ArtifactError: its class is needed and not given, or does not fit the tensors.
    """
    tensors = read_tensors(folder)
    tensors |= {name: tensors[same] for name, same in manifest["aliases"].items()}
    if base is None and "architecture" in manifest:
        base = construct(manifest["architecture"])
    if base is None and "encoder" in manifest:
        base = TextEncoder.of(manifest["encoder"])
    if base is None and (folder / GRAPH).is_file():
        weights = read_weights(manifest, tensors)
        layers = graph_layers(manifest, weights, tensors)
        return run_graph(folder / GRAPH, graph_state(weights, tensors), layers, manifest.get("class", "Program"))
    if base is None:
        name = manifest.get("class", "a class of your own")
        raise ArtifactError(
            f"{folder} holds weights of {name} without its code; "
            f"give model={name}(...), or save it with example=a batch"
        )
    return filled(base, manifest, tensors, folder)


def filled(base: nn.Module, manifest: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    """`base` with the folder's weights in place of its own; what was made smaller is made so here too."""
    base = apart(base, tensors)
    for name, nested in manifest.get("removed", {}).items():
        put(base, name, Through(nested=nested))
    weights = read_weights(manifest, tensors)
    resize(base, {name: tuple(tensor.shape) for name, tensor in tensors.items()} | matrix_shapes(weights))
    layers = compressible(base)
    check_layers(folder, type(base).__name__, weights, layers)
    for name in weights:
        layers[name].to(floats_of(manifest, name))
    replace(base, weights, layers, trainable=False)
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(CONSTANT)}
    check_shapes(folder, type(base).__name__, state, base)
    for name, held in base.state_dict(keep_vars=True).items():
        if name in state:  # in the precision it was saved in; tied parameters stay tied
            held.data = held.data.to(state[name].dtype)
    missing, unexpected = base.load_state_dict(state, strict=False)
    wrong = [name for name in missing if ".matrix." not in name and not name.startswith("matrix.")] + unexpected
    if wrong:
        raise ArtifactError(
            f"{folder} does not fit {type(base).__name__}: tensor {wrong[0]!r} is in one and not the other"
        )
    return base.eval()


def described_encoder(encoder: TextEncoder, folder: Path) -> dict[str, Any]:
    """What a manifest says of a text encoder, whose tokenizer is written into the folder."""
    found: dict[str, Any] = {"encoder": encoder.told, "signature": encoder.signature}
    if encoder.tokenizer is None:
        return found
    if (told := tokenizer_of(encoder.tokenizer, folder)) is None:
        encoder.tokenizer.save_pretrained(folder)
        return found
    return {**found, "tokenizer": told}


CONSTANT = "graph.constant."


def steps_of(model: nn.Module, layers: Collection[str]) -> dict[str, Steps]:
    """The steps of recurrent layers by name, all of whose own layers are among these."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, Steps)}
    return {n: steps for n, steps in found.items() if all(f"{n}.{own}" in layers for own, _ in steps.named_children())}


def compressed(model: nn.Module) -> dict[str, CompressedLayer]:
    """The compressed layers by name, each name once."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, CompressedLayer)}


def specs(model: nn.Module) -> dict[str, Any]:
    """How each compressed layer's weight is written; of layers that share one, the later ones name the first."""
    first: dict[nn.Module, str] = {}
    found: dict[str, Any] = {}
    for name, layer in compressed(model).items():
        first.setdefault(layer.matrix, name)
        found[name] = layer.weight.spec() if first[layer.matrix] == name else {"same_as": first[layer.matrix]}
    return found


def floats_of(manifest: Mapping[str, Any], name: str) -> torch.dtype:
    """The type of the numbers of a compressed layer, of which its matrix is not."""
    return DATATYPES[manifest.get("floats", {}).get(name, "FP32")]


def read_weights(manifest: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Weight]:
    """The weight of each compressed layer; its tensors are taken out of `tensors`."""
    weights: dict[str, Weight] = {}
    for name, spec in manifest["weights"].items():
        weights[name] = weights[spec["same_as"]] if "same_as" in spec else take_weight(name, spec, tensors)
    return weights


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are not parts of compressed weights."""
    modules = model.named_modules(remove_duplicate=False)
    parts = {f"{name}.{own}" for name, module in modules if isinstance(module, Frozen) for own in module.state_dict()}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in parts}


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor by the name it is stored under; those of a weight that several layers share are named once."""
    layers = compressed(model)
    parts = [parts_of(name, layers[name].weight) for name, spec in specs(model).items() if "same_as" not in spec]
    return plain_state(model) | {name: part for found in parts for name, part in found.items()}


def aliases(model: nn.Module) -> dict[str, str]:
    """Names of tensors that are another tensor, which alone is stored; so is the base that several sums have."""
    first: dict[tuple[Any, ...], str] = {}
    found = {
        name: first.setdefault((t.data_ptr(), t.shape, t.stride(), t.dtype), name)
        for name, t in named_state(model).items()
        if t.numel()
    }
    return {name: same for name, same in found.items() if name != same}


def stored_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor once, by the name it is stored under."""
    same = aliases(model)
    return {name: tensor for name, tensor in named_state(model).items() if name not in same}


def graph_layers(
    manifest: Mapping[str, Any], weights: dict[str, Weight], tensors: dict[str, Tensor]
) -> dict[str, nn.Module]:
    """The layers that are operators in the exported graph; their weights and tensors are taken out of those given."""
    layers: dict[str, nn.Module] = {}
    held: dict[int, Any] = {}  # what several of them have stays one
    for name, description in manifest.get("layers", {}).items():
        with torch.device("meta"):
            layer = construct(description).to(floats_of(manifest, name))
        if (weight := weights.pop(name, None)) is not None:
            layer = wrap(layer, weight)
            layer.matrix = held.setdefault(id(weight), layer.matrix)
        for own, part in layer.state_dict(keep_vars=True).items():
            if "." not in own:  # or it is of the matrix
                stored = tensors.pop(f"{name}.{own}")
                kept = nn.Parameter(stored, requires_grad=False) if isinstance(part, nn.Parameter) else stored
                setattr(layer, own, held.setdefault(id(stored), kept))
        layers[name] = layer
    for name, told in manifest.get("steps", {}).items():
        parts = [layers.pop(f"{name}.{part}") for part in PARTS if f"{name}.{part}" in layers]
        layers[name] = Steps(told["kind"], told["backward"], *parts)
    return layers


def graph_state(
    weights: Mapping[str, Weight], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state and the constants of the exported graph, from what is stored beside its layers."""
    constants = {n.removeprefix(CONSTANT): t for n, t in tensors.items() if n.startswith(CONSTANT)}
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(CONSTANT)}
    for name, weight in weights.items():
        state |= {f"{name}.matrix.part{part}": tensor for part, tensor in weight.parts().items()}
    return state, constants
