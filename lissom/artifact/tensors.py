"""Weights and tensors by name, to and from safetensors.

A compressed layer `L` is stored as `L.weight_packed`, `L.weight_scale` and so on; `weights` of the manifest says how to
read them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lissom.artifact.coding import decode, encode
from lissom.errors import ArtifactError
from lissom.formats import FORMATS, Weight, read_weight
from lissom.models import weight_of
from lissom.models.checkpoint import opened


def write_tensors(file: Path, tensors: Mapping[str, Tensor], coding: str | None = None) -> None:
    """One safetensors file, its tensors entropy coded where asked.

    Raises:
        ArtifactError: the disk is full or cannot be written.
    """
    content, header = encode(tensors) if coding else (tensors, {})
    plain = apart({name: t.detach().cpu().contiguous() for name, t in content.items()})
    try:
        save_file(plain, file, header or {"format": "pt"})  # one entry: of several the order is left to chance
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file.name} cannot be written: {error}") from None


def payload(file: Path) -> int:
    """Bytes that the tensors of a safetensors file take in it, without its header."""
    with file.open("rb") as opened:
        return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those copied that lie in memory of one before them, as buffers of a module may; others are large."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def read_tensors(folder: Path, specs: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Tensor]:
    """All tensors of a folder, where its files are mapped into memory.

    Of layers in one format, as their `specs` say, a file is mapped once, and once more for each other format: it is let
    go of when none of its tensors is needed any more, since kernels read a format as it is stored or make it anew.

    Raises:
        ArtifactError: a file is cut short or corrupt, or its entropy coding is.
    """
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= read_file(file, specs)
    return found


def read_file(file: Path, specs: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Tensor]:
    """All tensors of one file; as for `read_tensors`."""
    with opened(file) as tensors:
        names, header = list(tensors.keys()), tensors.metadata() or {}
    read: dict[str, Tensor] = {}
    for same in by_format(names, specs or {}):
        with opened(file) as tensors:
            read |= {name: tensors.get_tensor(name) for name in same}
    return decode(read, header, str(file))


def by_format(names: Iterable[str], specs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The names of tensors, those of one format together."""
    found: dict[Any, list[str]] = {}
    for name in names:
        found.setdefault(specs.get(name.partition(".weight")[0], {}).get("format"), []).append(name)
    return list(found.values())


def parts_of(layer: str, weight: Weight) -> dict[str, Tensor]:
    """The tensors of a layer's weight by the names they are stored under."""
    return {f"{layer}.weight{name}": part for name, part in weight.parts().items()}


def check_layers(folder: Path, whose: str, weights: Mapping[str, Weight], layers: Mapping[str, nn.Module]) -> None:
    """See that the model has the layers that the weights are for; `whose` model it is, an error says.

    Raises:
        ArtifactError: a layer is missing or of another shape.
    """
    for name, weight in weights.items():
        if name not in layers:
            raise ArtifactError(f"{folder} does not fit {whose}: layer {name!r} is in one and not the other")
        if weight_of(layers[name]).shape != weight.shape:
            found, fitting = list(weight.shape), list(weight_of(layers[name]).shape)
            raise ArtifactError(
                f"{folder} does not fit {whose}: layer {name!r} is {found} in one and {fitting} in the other"
            )


def take_weight(layer: str, spec: Mapping[str, Any], tensors: dict[str, Tensor]) -> Weight:
    """Read a layer's weight and take its tensors out of `tensors`.

    Raises:
        ArtifactError: the format is unknown or a tensor is missing.
    """
    if spec.get("format") not in FORMATS:
        raise ArtifactError(f"{layer}: format {spec.get('format')!r} is unknown to this lissom; use a later one")
    prefix = f"{layer}.weight"
    parts = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    try:
        return read_weight(spec, parts)
    except KeyError as missing:
        raise ArtifactError(f"{layer}: {missing} is missing from the folder's tensors") from None
