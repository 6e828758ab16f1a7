from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.export.graphs.conftest import ACTING, FORMATS, apart

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxscript")
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def export(folder: Path) -> Any:
    from lissom.export.targets import export_folder

    return export_folder(folder, "openvino", folder.with_name("out"))


def answers(folder: Path, *inputs: Tensor) -> list[Any]:
    """What OpenVINO says in float32."""
    model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", EXACT)
    found = model([one.numpy() for one in inputs])
    return [found[place] for place in range(len(model.outputs))]


def constants(folder: Path) -> dict[str, int]:
    """How many numbers of each type the constants have."""
    found: dict[str, int] = {}
    for one in openvino.Core().read_model(folder / "openvino_model.xml").get_ops():
        if one.get_type_name() == "Constant":
            kind = one.get_output_element_type(0).to_string()
            found[kind] = found.get(kind, 0) + int(np.prod(list(one.get_output_shape(0))))
    return found


@pytest.mark.parametrize("kind", ["linear", "conv", "embedding"])
def test_every_format_says_in_openvino_what_it_says_here(
    many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]], kind: str
) -> None:
    formats = {name: make for name, make in FORMATS.items() if name != "turned" or kind == "linear"}
    folder, x, wanted = many(kind, formats if kind == "embedding" else formats | ACTING)
    done = export(folder)
    changed = {layer.layer.split(".")[-1] for layer in done.changed}
    assert changed == set() if kind == "conv" else changed == {"int4_6", "int4_6_zero", "int8_6_zero"}
    found = answers(done.out, x)
    for one, (name, ours) in zip(found, wanted.items(), strict=True):
        assert apart(one, ours) < (0.02 if name in changed else 2e-6), name


def test_constants_stay_whole_numbers(many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]]) -> None:
    names = ("int4_32_zero", "int8", "ternary", "int4", "palette", "half_", "brain_")
    done = export(many("linear", {name: FORMATS[name] for name in names})[0])
    held, matrix = constants(done.out), 20 * 96
    assert {kind: count // matrix for kind, count in held.items() if count >= matrix} == {
        "u4": 2,
        "u8": 2,
        "u2": 1,
        "f16": 1,
        "bf16": 1,
    }
    assert {layer.layer.split(".")[-1]: layer.form for layer in done.layers}["ternary"] == "2 bits, blocks of 32"


def test_a_language_model_whose_head_is_its_embedding_has_that_once(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lissom import compress_checkpoint, load
    from lissom.types import Recipe

    recipe = Recipe.of([{"technique": "rtn", "bits": 4, "group": 16, "symmetric": False}])
    nothing = torch.empty(0, 8, dtype=torch.long)
    done = export(compress_checkpoint(tiny("llama", tied=True, blocks=1), recipe, nothing, tmp_path / "small"))
    ids = torch.randint(0, 2048, (2, 7))
    assert apart(answers(done.out, ids)[0], load(tmp_path / "small")(ids).logits.detach()) < 1e-5
    assert 2048 * 32 < constants(done.out)["u4"] < 2 * 2048 * 32
