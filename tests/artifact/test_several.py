"""A checkpoint compressed by several processes, each with its share of the windows, against what one makes of all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import lissom
from lissom.artifact.tensors import read_file
from lissom.errors import DataError, RecipeError
from lissom.progress import Progress
from lissom.types import Recipe

Tiny = Callable[..., Path]
Together = Callable[..., list[Any]]
WINDOWS = torch.randint(2048, (6, 12), generator=torch.Generator().manual_seed(5))
RECIPE = Recipe.of(
    [
        {"layers": "*.self_attn.*", "technique": "awq", "group": 32},  # it acts on what the blocks before have become
        {"layers": "*.mlp.*", "technique": "sparsegpt", "sparsity": 0.5},
        {"layers": "*proj", "technique": "gptq", "bits": 4, "group": 32},
    ]
)


def compressed(model: Path, out: Path, group: dist.ProcessGroup, **more: Any) -> Path:
    """What one of several does."""
    own = WINDOWS[group.rank() :: group.size()]
    return lissom.compress_checkpoint(model, RECIPE, own, out, group=group, **more)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: own for file in sorted(folder.glob("*.safetensors")) for name, own in read_file(file).items()}


@pytest.mark.parametrize(("family", "recipe"), [("llama", RECIPE), ("qwen3_moe", Recipe.of(list(RECIPE.steps[1:])))])
def test_several_write_what_one_does(
    tiny: Tiny, together: Together, tmp_path: Path, family: str, recipe: Recipe
) -> None:
    model = tiny(family)
    lissom.compress_checkpoint(model, recipe, WINDOWS, tmp_path / "one")

    def act(group: dist.ProcessGroup) -> Path:
        own = WINDOWS[group.rank() :: 2]
        return lissom.compress_checkpoint(model, recipe, own, tmp_path / "two", group=group)

    assert together(2, act) == [tmp_path / "two"] * 2
    one, two = (lissom.load(tmp_path / name) for name in ("one", "two"))
    with torch.no_grad():
        torch.testing.assert_close(two(WINDOWS).logits, one(WINDOWS).logits, rtol=0.02, atol=0.02)


def test_several_go_on_where_they_were(tiny: Tiny, together: Together, tmp_path: Path) -> None:
    model, seen = tiny("llama"), list[str]()

    def stop(event: Progress) -> None:
        if event.done == 2:
            raise KeyboardInterrupt

    def ended(group: dist.ProcessGroup) -> None:
        with pytest.raises((KeyboardInterrupt, RuntimeError)):  # the others miss who has gone
            compressed(model, tmp_path / "again", group, progress=stop)

    together(2, ended)
    together(2, lambda group: compressed(model, tmp_path / "again", group, progress=lambda e: seen.append(e.text)))
    assert len(seen) == 3  # of five parts
    together(2, lambda group: compressed(model, tmp_path / "once", group))
    again, once = tensors(tmp_path / "again"), tensors(tmp_path / "once")
    assert again.keys() == once.keys()
    assert all(torch.equal(again[name], own) for name, own in once.items())


def test_what_several_cannot_do_is_refused_by_all(tiny: Tiny, together: Together, tmp_path: Path) -> None:
    def act(group: dist.ProcessGroup) -> list[str]:
        told, out = [], tmp_path / "out"
        refused: list[tuple[Any, Any, type[Exception]]] = [
            ([{"technique": "yaqa", "bits": 4}], WINDOWS, RecipeError),
            ([{"technique": "rtn", "bits": 4}, {"technique": "tuned"}], WINDOWS, RecipeError),
            ([{"technique": "gptq"}], WINDOWS[: 1 - group.rank()], DataError),
        ]
        for steps, windows, kind in refused:
            with pytest.raises(kind) as error:
                lissom.compress_checkpoint(tiny("llama"), Recipe.of(steps), windows, out, group=group)
            told.append(str(error.value))
        return told

    for told in together(2, act):
        assert "not merged" in told[0]
        assert "learns is for one process" in told[1]
        assert "1 of 2 processes have windows" in told[2]
