"""A module made of torch.nn layers, as the names of the layers and the arguments that make them."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lissom.errors import ArtifactError
from lissom.formats import CompressedLayer

CONTAINERS = {"Sequential": nn.Sequential}


def describe(model: nn.Module, name: str = "", first: dict[nn.Module, str] | None = None) -> dict[str, Any] | None:
    """The description of a module, or None where it is of a class that is not torch.nn's own.

    A module in several places is described in the first; the others name that place.
    """
    first = {} if first is None else first
    if first.setdefault(model, name) != name:
        return {"same_as": first[model]}
    kind = model.stands_for if isinstance(model, CompressedLayer) else type(model)
    if getattr(nn, kind.__name__, None) is not kind:
        return None
    if kind.__name__ in CONTAINERS:
        places = {child: module for child, module in model._modules.items() if module is not None}
        children = {child: describe(module, f"{name}.{child}", first) for child, module in places.items()}
        return None if None in children.values() else {"layer": kind.__name__, "children": children}
    arguments = arguments_of(kind, model)
    return None if arguments is None else {"layer": kind.__name__, "arguments": arguments}


def arguments_of(kind: type[nn.Module], layer: nn.Module) -> dict[str, Any] | None:
    """The arguments that make a layer like this one; None where its attributes do not tell."""
    arguments: dict[str, Any] = {}
    for p in inspect.signature(kind.__init__).parameters.values():
        if p.name in {"self", "device", "dtype"} or p.name.startswith("_"):
            continue
        if p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD}:
            continue
        if p.name == "bias":
            arguments["bias"] = getattr(layer, "bias", None) is not None
        elif plain(getattr(layer, p.name, inspect)):
            arguments[p.name] = getattr(layer, p.name)
        elif p.default is inspect.Parameter.empty:
            return None
    return arguments if alike(kind, arguments, layer) else None


def plain(value: Any) -> bool:
    """Whether JSON holds a value."""
    if isinstance(value, tuple | list):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def alike(kind: type[nn.Module], arguments: Mapping[str, Any], layer: nn.Module) -> bool:
    """Whether a layer made from the arguments has the parameters and buffers of this one, and prints alike."""
    try:
        with torch.device("meta"):
            made = kind(**arguments)
    except (TypeError, ValueError):
        return False
    if isinstance(layer, CompressedLayer):
        return True
    own, its = layer.state_dict(), made.state_dict()
    return repr(made) == repr(layer) and {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in its.items()}


def construct(description: Mapping[str, Any], name: str = "", places: dict[str, nn.Module] | None = None) -> nn.Module:
    """The module of a description, with weights of no meaning yet.

    Raises:
        ArtifactError: the description names something that is not a torch.nn layer.
    """
    places = {} if places is None else places
    if "same_as" in description:
        return places[description["same_as"]]
    called = str(description.get("layer"))
    kind = getattr(nn, called, None)
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise ArtifactError(f"lissom.json: {called!r} is no layer of torch.nn; the folder is not one that lissom wrote")
    if called in CONTAINERS:
        made: nn.Module = CONTAINERS[called]()
        for child, module in description["children"].items():
            made.add_module(child, construct(module, f"{name}.{child}", places))
    else:
        made = kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in description["arguments"].items()})
    places[name] = made
    return made
