"""Language models whose layers share a base: it is written once, whichever pieces it comes in, and read as one."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils.weak import WeakIdKeyDictionary

from lissom.artifact import compress_checkpoint, open_folder
from lissom.artifact.language import once
from lissom.types import Recipe

Tiny = Callable[..., Path]
RECIPE = Recipe.of([{"layers": "*.mlp.up_proj", "technique": "tie", "rank": 4, "base": 8, "group": 0}])
WINDOWS = torch.randint(2048, (2, 8), generator=torch.Generator().manual_seed(5))


def test_a_base_of_several_blocks_is_written_once(tiny: Tiny, tmp_path: Path) -> None:
    folder = compress_checkpoint(tiny("qwen3"), RECIPE, WINDOWS, tmp_path / "out")
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            stored |= set(tensors.keys())
    assert sum(name.endswith("_base_packed") for name in stored) == 1
    assert sum(name.endswith("_correction_left_packed") for name in stored) == 2
    opened = open_folder(folder)
    assert len(opened.manifest["aliases"]) == 2  # codes and scales
    model: Any = opened.model
    first, second = (block.mlp.up_proj.weight for block in model.model.layers)
    assert first.base.plane.words is second.base.plane.words
    assert not torch.equal(first.correction.dense(), second.correction.dense())
    assert torch.isfinite(model(WINDOWS).logits).all()


def test_only_the_very_same_tensor_is_written_once() -> None:
    written: Any = WeakIdKeyDictionary()
    one, equal = torch.ones(3), torch.ones(3)
    assert once({"a": one, "b": equal, "c": one}, written)[1] == {"c": "a"}
    new, same = once({"d": equal, "e": torch.ones(3)}, written)
    assert (set(new), same) == ({"e"}, {"d": "b"})


def test_what_was_written_is_not_kept_in_memory() -> None:
    written: Any = WeakIdKeyDictionary()
    tensor = torch.ones(3)
    once({"a": tensor}, written)
    gone = weakref.ref(tensor)
    del tensor
    assert gone() is None
    assert len(written) == 0
