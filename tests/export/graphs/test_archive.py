import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.export.graphs.conftest import ACTING, FORMATS, apart, dynamic

EACH = ("int4_zero", "int3", "ternary", "binary", "palette_kept", "pruned", "pruned_int4_zero", "corrected", "turned")
READER = """
import sys
sys.modules["lissom"] = None  # importing it fails
import torch
from safetensors.torch import load_file, save_file
inputs = load_file(sys.argv[2])
program = torch.export.load(sys.argv[1]).module()
found = program(*(inputs[name] for name in sorted(inputs)))
save_file({str(place): one.contiguous() for place, one in enumerate(found)}, sys.argv[3])
"""


def answers(file: Path, *inputs: Tensor) -> list[Tensor]:
    """What PyTorch says in a process that has no lissom."""
    given, found = file.with_suffix(".in"), file.with_suffix(".out")
    save_file({str(place): one for place, one in enumerate(inputs)}, given)
    subprocess.run([sys.executable, "-W", "ignore", "-c", READER, file, given, found], check=True, cwd=file.parent)
    return list(load_file(found).values())


def export(folder: Path) -> Any:
    from lissom.export.targets import export_folder

    return export_folder(folder, "torch", folder.with_suffix(".pt2"))


@pytest.mark.parametrize("kind", ["linear", "conv", "embedding"])
def test_every_format_runs_in_a_process_without_lissom(
    many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]], kind: str
) -> None:
    names = ("int8_zero", "int4_16", "ternary", "palette_wide") if kind != "linear" else EACH
    formats: dict[str, Any] = {name: FORMATS[name] for name in names}
    if kind != "embedding":
        formats |= ACTING | {"dynamic8": lambda matrix: dynamic(matrix, 8, bits=8)}
    folder, x, wanted = many(kind, formats)
    done = export(folder)
    assert done.changed == []
    found = answers(done.out, x)
    order = sorted(range(len(wanted)), key=str)  # as safetensors gives them back
    for place, one in zip(order, found, strict=True):
        name = list(wanted)[place]
        assert apart(one, wanted[name]) < 1e-6, name


def test_weights_are_as_they_are_stored_and_nothing_is_pickled(
    many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]],
) -> None:
    folder, _, _ = many("linear", {"int3": FORMATS["int3"], "ternary": FORMATS["ternary"]})
    done = export(folder)
    with zipfile.ZipFile(done.out) as archive:
        sizes = {one.filename.partition("/")[2]: one.file_size for one in archive.infolist()}
        program = archive.read(next(name for name in archive.namelist() if name.endswith("models/model.json")))
    stored = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    assert sum(size for name, size in sizes.items() if "weights/weight_" in name) == stored
    assert sum(size for name, size in sizes.items() if name.endswith(".pt")) == 0
    assert b".py" not in program
    assert b"lissom" not in program


def test_a_language_model_reads_any_number_of_texts_of_any_length(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lissom import compress_checkpoint, load
    from lissom.types import Recipe

    recipe = Recipe.of([{"technique": "rtn", "bits": 4, "group": 16}])
    nothing = torch.empty(0, 8, dtype=torch.long)
    done = export(compress_checkpoint(tiny("llama", blocks=1), recipe, nothing, tmp_path / "small"))
    program, model = torch.export.load(done.out).module(), load(tmp_path / "small")
    for n, t in ((2, 7), (1, 1), (3, 4)):
        ids = torch.randint(0, 2048, (n, t))
        assert apart(program(ids)[0].detach(), model(ids).logits.detach()) < 1e-6
