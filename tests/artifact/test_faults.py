"""What goes wrong with a language model is named, where it can be before hours of work, and nothing is lost by it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lissom.artifact import compress_checkpoint, read_manifest
from lissom.errors import ArtifactError, DataError, ModelError
from lissom.progress import Progress
from lissom.types import Recipe

Tiny = Callable[..., Path]
WINDOWS = torch.randint(2048, (4, 12), generator=torch.Generator().manual_seed(5))
GPTQ = Recipe.of([{"layers": "model.layers.*", "technique": "gptq", "bits": 4, "group": 32}])

STEPS = [{"technique": "rtn", "bits": 2, "group": 64}, {"layers": "model.layers.2.*", "technique": "residual"}]
FULL = f"""
import resource, sys
import torch
from lissom.artifact import compress_checkpoint
from lissom.types import Recipe

limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
windows = torch.randint(2048, (4, 12), generator=torch.Generator().manual_seed(5))
compress_checkpoint(sys.argv[1], Recipe.of({STEPS}), windows, sys.argv[2], progress=print)
"""


def test_a_disk_that_gets_full_is_named_and_nothing_is_lost(demo_folder: Path, tmp_path: Path) -> None:
    def run(out: str) -> list[str]:
        told: list[str] = []
        compress_checkpoint(
            demo_folder, Recipe.of(STEPS), WINDOWS, tmp_path / out, progress=lambda part: told.append(str(part))
        )
        return told

    parts = run("roomy")
    sizes = {name: (tmp_path / "roomy" / f"{name}.safetensors").stat().st_size for name in parts}
    assert max(sizes, key=sizes.__getitem__) == "model.layers.2"
    given = [demo_folder, tmp_path / "out", str(sizes["model.layers.2"] - 1)]  # a disk of its own: in a process
    ran = subprocess.run([sys.executable, "-c", FULL, *given], capture_output=True, text=True, check=False)
    told, error = ran.stdout.split(), ran.stderr
    assert told == parts[: parts.index("model.layers.2")]
    assert "model.layers.2.safetensors" in error
    assert "cannot be written" in error
    assert f"make room and do the same again: what was finished waits in {tmp_path / '.out.work'}" in error
    kept = {file.name for file in (tmp_path / ".out.work" / "files").iterdir()}
    assert kept == {f"{name}.safetensors" for name in told}
    assert told + run("out") == parts
    assert read_manifest(tmp_path / "out") == read_manifest(tmp_path / "roomy")


def sharded(source: Path, folder: Path) -> Path:
    """A checkpoint in many files; the one that holds a layer of the last block."""
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder, max_shard_size="20KB")
    files = [file for file in folder.glob("*.safetensors") if "model.layers.1.mlp.up_proj.weight" in load_file(file)]
    return files[0]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def noise(file: Path) -> None:
    file.write_bytes(b"<html>" * 1000)


@pytest.mark.parametrize("spoil", [cut, noise, Path.unlink])
def test_a_shard_that_cannot_be_read_is_named_before_anything_is_done(
    tiny: Tiny, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    shard, told = sharded(tiny("llama"), tmp_path / "in"), list[Progress]()
    spoil(shard)
    with pytest.raises(ArtifactError, match=rf"{shard.name} cannot be read: .*; copy or download it again"):
        compress_checkpoint(tmp_path / "in", GPTQ, WINDOWS, tmp_path / "out", progress=told.append)
    assert told == []
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def with_tensor(source: Path, folder: Path, name: str, change: Callable[[torch.Tensor], Any]) -> Path:
    """A copy of a checkpoint, in which one tensor is changed in place."""
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_number_that_is_none_is_named_before_anything_is_done(
    tiny: Tiny, tmp_path: Path, name: str, wrong: float
) -> None:
    def change(tensor: torch.Tensor) -> None:
        tensor.view(-1)[[3, 5]] = wrong

    source, told = with_tensor(tiny("llama"), tmp_path / "in", name, change), list[Progress]()
    with pytest.raises(
        ModelError, match=rf"^{name} of .*in holds 2 numbers that are not finite, the first at \[.*3\];"
    ):
        compress_checkpoint(source, GPTQ, WINDOWS, tmp_path / "out", progress=told.append)
    assert told == []
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


TUNED = [
    {"layers": "model.layers.*", "technique": "rtn", "group": 32},
    {"layers": "model.layers.*", "technique": "tuned"},
]


@pytest.mark.parametrize("recipe", [GPTQ, Recipe.of(TUNED)], ids=["statistics", "tuned"])
def test_a_model_that_makes_no_numbers_of_the_data_is_named_where_it_does(
    tiny: Tiny, tmp_path: Path, recipe: Recipe
) -> None:
    source = with_tensor(tiny("llama"), tmp_path / "in", "model.layers.1.mlp.up_proj.weight", lambda w: w.mul_(1e38))
    with pytest.raises(DataError, match=r"data: what model\.layers\.1.* is not finite when the model runs on it"):
        compress_checkpoint(source, recipe, WINDOWS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
