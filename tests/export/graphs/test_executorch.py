"""Programs of ExecuTorch, run by its own runtime where that is installed."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.export.graphs.conftest import ACTING, FORMATS, apart, dynamic

HERE = find_spec("executorch") is not None
EIGHT: dict[str, Callable[[Tensor], Any]] = {"dynamic8": lambda matrix: dynamic(matrix, 8, bits=8)}
needs_it = pytest.mark.skipif(not HERE, reason="needs the package executorch")


def export(folder: Path, **more: Any) -> Any:
    from lissom.export.targets import export_folder

    return export_folder(folder, "executorch", folder.with_suffix(".pte"), **more)


def answers(file: Path, *inputs: Tensor) -> list[Tensor]:
    """What ExecuTorch's runtime says."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")
    return [one.clone() for one in method.execute(list(inputs))]


@needs_it
@pytest.mark.parametrize("kind", ["linear", "conv", "embedding"])
def test_every_format_says_in_executorch_what_it_says_here(
    many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]], kind: str
) -> None:
    formats = {name: make for name, make in FORMATS.items() if name != "turned" or kind == "linear"}
    folder, x, wanted = many(kind, formats if kind == "embedding" else formats | ACTING | EIGHT)
    done = export(folder)
    assert done.changed == []
    for one, (name, ours) in zip(answers(done.out, x), wanted.items(), strict=True):
        assert apart(one, ours) < 5e-6, name
    assert done.report["lowered"]["parts of XNNPACK"] > 0


@needs_it
@pytest.mark.parametrize("most", [5, 16])  # from 16 on PyTorch computes convolutions in another way
def test_batches_of_any_size_up_to_the_largest(most: int, tmp_path: Path) -> None:
    from lissom import compress_model, load, save

    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(128, 10)).eval()
    small = compress_model(model, steps=[{"technique": "rtn", "bits": 4}])
    done = export(save(small, tmp_path / "cnn", example=torch.randn(2, 3, 8, 8)), batch=most)
    assert done.report["most"]["batch"] == most
    for n in (1, 3, most):
        x = torch.randn(n, 3, 8, 8)
        assert apart(answers(done.out, x)[0], load(tmp_path / "cnn")(x).detach()) < 5e-6


@needs_it
@pytest.mark.parametrize("batch", [1, 12])  # as many as tokens
def test_a_language_model_reads_a_text_of_any_length(batch: int, tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lissom import compress_checkpoint, load
    from lissom.types import Recipe

    recipe = Recipe.of([{"technique": "rtn", "bits": 4, "group": 16}])
    nothing = torch.empty(0, 8, dtype=torch.long)
    small = compress_checkpoint(tiny("llama", blocks=1), recipe, nothing, tmp_path / "small")
    done = export(small, batch=batch, tokens=12)
    model = load(tmp_path / "small")
    for t in (1, 7, 12):
        ids = torch.randint(0, 2048, (min(batch, 3), t))
        assert apart(answers(done.out, ids)[0], model(ids).logits.detach()) < 1e-5


@pytest.mark.skipif(HERE, reason="the package executorch is there")
def test_without_the_package_it_is_named(tmp_path: Path) -> None:
    from lissom import ModelError, save

    folder = save(nn.Sequential(nn.Linear(4, 2)), tmp_path / "model", example=torch.ones(2, 4))
    with pytest.raises(ModelError, match=r"needs the package executorch; install it with `pip install lissom\[exec"):
        export(folder)


def test_a_batch_of_none_is_refused(tmp_path: Path) -> None:
    from lissom import RecipeError, save

    folder = save(nn.Sequential(nn.Linear(4, 2)), tmp_path / "model", example=torch.ones(2, 4))
    with pytest.raises(RecipeError, match="tokens 0 cannot be; give numbers from 1"):
        export(folder, tokens=0)
