"""Schemes of quantization, as compressed-tensors and SparseML write them down, and the steps that come nearest.

A preset's name says bits of weights and of inputs: W4A16 is groups of 128, W8A8 a scale for each row.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lissom.errors import RecipeError, meant
from lissom.types import Knob, Step

GROUP = 128  # of the presets of integers
INTEGERS = re.compile(r"W(\d)A(\d+)(_ASYM)?")
FLOATS: Mapping[str, Mapping[str, Any]] = {  # what their weights, and their inputs, are
    "FP8": {"weights": {"strategy": "tensor"}, "inputs": 8},
    "FP8_DYNAMIC": {"weights": {"strategy": "channel"}, "inputs": 8},
    "FP8_BLOCK": {"weights": {"strategy": "block"}, "inputs": 8},
    "NVFP4A16": {"weights": {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}, "inputs": 0},
    "NVFP4": {"weights": {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}, "inputs": 4},
    "MXFP4A16": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32}, "inputs": 0},
    "MXFP4": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32}, "inputs": 4},
    "MXFP4XFP8": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32}, "inputs": 8},
    "MXFP8A16": {"weights": {"num_bits": 8, "strategy": "group", "group_size": 32}, "inputs": 0},
    "MXFP8": {"weights": {"num_bits": 8, "strategy": "group", "group_size": 32}, "inputs": 8},
}
KINDS = {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8", (8, 0): "fp8_e4m3"}  # by bits and groups
BY_ITSELF = {"W4AFP8": ("W4A16", 8)}  # integers whose inputs are floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How layers are rounded: integers of `bits`, or floats of a `kind`; what comes in, to integers of `inputs` bits.

    0 inputs are left as they are, and a group of 0 is a row. `ordered` says whether GPTQ takes columns by how much is
    listened to them, where that is said. `notes` are what is not quite as it was asked for.
    """

    bits: int = 8
    group: int = 0
    symmetric: bool = True
    clip: bool = False
    kind: str = ""
    inputs: int = 0
    ordered: bool | None = None
    notes: tuple[str, ...] = ()

    def steps(self, layers: str, technique: str = "rtn", **more: Knob) -> list[Step]:
        """The steps for layers: integers by a technique, floats to the nearest."""
        if self.kind:
            return [Step(technique="floats", layers=layers, knobs={"kind": self.kind})]
        knobs: dict[str, Knob] = {"bits": self.bits, "group": self.group, "clip": self.clip}
        knobs |= {} if self.symmetric else {"symmetric": False}
        knobs |= {} if self.ordered is None or technique != "gptq" else {"act_order": self.ordered}
        found = [Step(technique=technique, layers=layers, knobs=knobs | more)]
        return found + ([Step(technique="dynamic", layers=layers, knobs={"bits": self.inputs})] if self.inputs else [])


def preset(name: str) -> Scheme | None:
    """A scheme by its name; None leaves layers as they are.

    Raises:
        RecipeError: there is no such preset, or none that can be held here.
    """
    asked = name.upper()
    if asked == "UNQUANTIZED":
        return None
    if asked in BY_ITSELF:
        other, bits = BY_ITSELF[asked]
        return scheme({"weights": told(other)["weights"], "input_activations": {"type": "float", "num_bits": bits}})
    return scheme(told(asked))


def told(name: str) -> dict[str, Any]:
    """A preset as a config says it.

    Raises:
        RecipeError: there is no such preset, or none that can be held here.
    """
    if name in FLOATS:
        weights, inputs = {"num_bits": 8, "type": "float", **FLOATS[name]["weights"]}, FLOATS[name]["inputs"]
        return {"weights": weights, "input_activations": {"type": "float", "num_bits": inputs} if inputs else None}
    found = INTEGERS.fullmatch("W8A8" if name == "INT8" else name)
    if found is None or not 2 <= int(found[1]) <= 8 or int(found[2]) not in (4, 8, 16):
        known = ("W8A8", "W4A16", "W4A16_ASYM", *FLOATS)
        raise RecipeError(
            f"recipe: scheme {name!r} has no counterpart; such as {', '.join(known)} have{meant(name, known)}"
        )
    bits, inputs = int(found[1]), int(found[2])
    groups = {"strategy": "channel"} if (bits, inputs) == (8, 8) else {"strategy": "group", "group_size": GROUP}
    weights = {"num_bits": bits, "type": "int", "symmetric": not found[3], **groups}
    tokens = {"num_bits": inputs, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    return {"weights": weights, "input_activations": tokens if inputs < 16 else None}


def scheme(given: Mapping[str, Any], *, symmetric: bool = True) -> Scheme | None:
    """A scheme by what it says of weights and inputs, which are `symmetric` where it says nothing of that.

    None leaves layers as they are.

    Raises:
        RecipeError: no format here holds such weights.
    """
    weights, inputs, outputs = (given.get(name) for name in ("weights", "input_activations", "output_activations"))
    notes = ["what comes out of layers is not rounded"] if there(outputs) else []
    if weights is None or not there(weights):
        return None
    bits, size, made = int(weights.get("num_bits") or 8), group_of(weights), dict[str, Any]()
    whole = str(weights.get("type", "int")).lower() == "int"
    if whole and not 2 <= bits <= 8:
        raise RecipeError(f"recipe: integers of {bits} bits have no counterpart; possible are 2 to 8")
    if whole:
        made = {"symmetric": bool(weights.get("symmetric", symmetric)), "clip": "mse" in str(weights.get("observer"))}
        made |= {"ordered": bool(weights["actorder"])} if "actorder" in weights else {}
    elif (bits, size) not in KINDS:
        raise RecipeError(
            f"recipe: no floats of {bits} bits and groups of {size}; there are {', '.join(KINDS.values())}"
        )
    else:
        made = {"kind": KINDS[bits, size]}
    if weights.get("strategy", "tensor" if not size else "") in ("tensor", "block"):
        notes.append("each row has a scale of its own")
    rounded, more = incoming(inputs, whole)
    return Scheme(bits=bits, group=size, inputs=rounded, notes=(*notes, *more), **made)


def there(part: Any) -> bool:
    """Whether a part of a scheme is given; "null" is how older files say that it is not."""
    return isinstance(part, Mapping)


def group_of(weights: Mapping[str, Any]) -> int:
    """How many inputs share a scale; 0 stands for a row, which is what comes nearest to a whole matrix or a block."""
    size = weights.get("group_size")
    return int(size) if isinstance(size, int) and size > 0 else 0


def incoming(inputs: Any, whole: bool) -> tuple[int, list[str]]:
    """The bits of integers that inputs become, 0 for none; and what of that has no counterpart."""
    if not there(inputs):
        return 0, []
    bits = int(inputs.get("num_bits") or 8)
    if str(inputs.get("type", "int")).lower() != "int":
        return 0, [f"inputs stay as they are, and do not become floats of {bits} bits"]
    if not whole:
        return 0, [f"inputs stay as they are, and do not become integers of {bits} bits"]
    notes = [] if inputs.get("dynamic") is True else ["inputs have a scale for each token, none from calibration"]
    notes += [] if inputs.get("symmetric", True) else ["inputs are rounded symmetrically"]
    return bits, notes
