from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.export.graphs.conftest import ACTING, FORMATS, apart, dynamic

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def answers(file: Path, *inputs: Tensor) -> dict[str, Any]:
    """What ONNX Runtime says, by name."""
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    given = {told.name: one.numpy() for told, one in zip(session.get_inputs(), inputs, strict=True)}
    return dict(zip([told.name for told in session.get_outputs()], session.run(None, given), strict=True))


def export(folder: Path, **more: Any) -> Any:
    from lissom.export.targets import export_folder

    return export_folder(folder, "onnx", folder.with_suffix(".onnx"), **more)


@pytest.mark.parametrize("kind", ["linear", "conv", "embedding"])
def test_every_format_says_in_onnx_runtime_what_it_says_here(
    many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]], kind: str
) -> None:
    formats = {name: make for name, make in FORMATS.items() if name != "turned" or kind == "linear"}
    folder, x, wanted = many(kind, formats if kind == "embedding" else formats | ACTING)
    done = export(folder)
    assert done.changed == []
    found = answers(done.out, x)
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        assert apart(found[name], one) < 2e-6, name


def test_what_no_node_holds_becomes_8_bits_and_is_named(
    many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]],
) -> None:
    from lissom.formats import Palette
    from tests.export.graphs.conftest import palette

    def wide(matrix: Tensor) -> Palette:
        return palette(matrix, width=2, kept=True)

    folder, x, wanted = many("linear", {"wide": wide})
    done = export(folder)
    assert [layer.form for layer in done.changed] == ["MatMulNBits 8 bits, blocks of 32"]
    assert 0 < apart(answers(done.out, x)["wide"], wanted["wide"]) < 0.02


def test_inputs_of_8_bits_are_rounded_by_the_runtime_no_worse_than_here(
    many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]],
) -> None:
    folder, x, wanted = many("linear", {"eight": lambda matrix: dynamic(matrix, 8, bits=8)})
    done = export(folder)
    assert [layer.form for layer in done.layers] == ["MatMulNBits 8 bits, blocks of 32, inputs of 8 bits"]
    from lissom import load

    layer = next(part for part in load(folder).modules() if hasattr(part, "matrix"))
    exact = x @ layer.weight.dense().T + layer.bias
    found = answers(done.out, x)["eight"]
    assert 0 < apart(found, exact.detach()) < 1.5 * apart(wanted["eight"], exact.detach())


def test_whole_numbers_stay_whole_numbers_in_the_file(
    many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]],
) -> None:
    names = ("int4_32_zero", "int8", "ternary", "int4_6", "int4_6_zero", "palette", "half_")
    folder, _, _ = many("linear", {name: FORMATS[name] for name in names})
    done = export(folder)
    model = onnx.load(done.out)
    onnx.checker.check_model(onnx.load(done.out))
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    largest = max(np.prod(one.dims) for one in model.graph.initializer if one.data_type in floats)
    assert largest == 20 * 96 / 6  # scales of the groups of 6
    forms = {layer.layer.split(".")[-1]: layer.form for layer in done.layers}
    assert forms["int4_32_zero"] == "MatMulNBits 4 bits, blocks of 32"
    assert forms["ternary"] == "MatMulNBits 2 bits, blocks of 32"
    assert forms["int4_6"] == "DequantizeLinear int4, groups of 6"
    assert forms["int4_6_zero"] == "DequantizeLinear uint4, groups of 6"
    assert done.out.stat().st_size < sum(layer.nbytes for layer in done.layers) + 12_000


def test_no_path_of_the_machine_is_in_the_file(many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]]) -> None:
    done = export(many("linear", {"int4": FORMATS["int4"]})[0])
    assert b".py" not in done.out.read_bytes()


def test_a_convolutional_network_takes_batches_of_any_size(tmp_path: Path) -> None:
    from lissom import compress_model, load, save

    layers = (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.Conv2d(8, 16, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)).eval()
    model[1].running_mean.normal_()
    small = compress_model(model, steps=[{"technique": "rtn", "bits": 4, "symmetric": False}])
    done = export(save(small, tmp_path / "cnn", example=torch.randn(2, 3, 8, 8)))
    for n in (1, 2, 7):
        x = torch.randn(n, 3, 8, 8)
        assert apart(answers(done.out, x)["output"], load(tmp_path / "cnn")(x).detach()) < 2e-6


class Mixed(nn.Module):
    """One layer is asked of which type its inputs should be."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(32, 64), nn.LayerNorm(64)
        self.along, self.head = nn.Conv1d(64, 64, 3, padding=1), nn.Linear(64, 5)

    def forward(self, index: Tensor) -> Tensor:
        x = self.norm(self.words(index)).float().mT
        return self.head(self.along(x.to(self.along.weight.dtype)).mean(2))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_module_in_16_bits_becomes_one_in_32(kind: torch.dtype, tmp_path: Path) -> None:
    from lissom import load, quantize_model, save

    index = torch.randint(32, (4, 7))
    folder = save(quantize_model(Mixed().to(kind)), tmp_path / "half", example=index)
    assert load(folder)(index).dtype == kind
    found = answers(export(folder).out, index)["output"]
    assert found.dtype == np.float32
    assert apart(found, load(folder, model=Mixed()).float()(index).detach()) < 2e-6  # its weights are the same


def test_a_text_encoder(text_encoder: Callable[..., Path], tmp_path: Path) -> None:
    from lissom import compress_model, load, save

    encoder = load(text_encoder("lasttoken"))
    ids, mask = torch.randint(5, 2048, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    small = compress_model(encoder, steps=[{"technique": "rtn", "bits": 4, "group": 16}])
    done = export(save(small, tmp_path / "encoder"))
    assert {layer.form.split()[0] for layer in done.layers} == {"GatherBlockQuantized", "MatMulNBits"}
    opened = load(tmp_path / "encoder")
    for n, t in ((3, 9), (1, 4)):
        given = {"input_ids": ids[:n, :t], "attention_mask": mask[:n, :t]}
        found = answers(done.out, *given.values())["embeddings"]
        assert apart(found, opened(**given).detach()) < 5e-6


def test_a_language_model_whose_head_is_its_embedding_has_that_once(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lissom import compress_checkpoint, load
    from lissom.types import Recipe

    recipe = Recipe.of([{"technique": "rtn", "bits": 4, "group": 16, "symmetric": False}])
    nothing = torch.empty(0, 8, dtype=torch.long)
    done = export(compress_checkpoint(tiny("llama", tied=True, blocks=1), recipe, nothing, tmp_path / "small"))
    ids = torch.randint(0, 2048, (2, 7))
    assert apart(answers(done.out, ids)["logits"], load(tmp_path / "small")(ids).logits.detach()) < 1e-5
    packed = [one for one in onnx.load(done.out).graph.initializer if np.prod(one.dims) == 2048 * 16]
    assert len(packed) == 1


def test_a_mixture_of_experts(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lissom import compress_checkpoint, load
    from lissom.types import Recipe

    recipe = Recipe.of([{"layers": "*.mlp.*", "technique": "rtn", "bits": 4, "group": 16}])
    nothing = torch.empty(0, 8, dtype=torch.long)
    done = export(compress_checkpoint(tiny("qwen3_moe", blocks=1), recipe, nothing, tmp_path / "small"))
    model = load(tmp_path / "small")
    for n, t in ((2, 7), (1, 1)):
        ids = torch.randint(0, 2048, (n, t))
        assert apart(answers(done.out, ids)["logits"], model(ids).logits.detach()) < 1e-5


def test_weights_that_one_file_cannot_hold_lie_beside_it(
    many: Callable[..., tuple[Path, Tensor, dict[str, Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lissom import ArtifactError
    from lissom.export.graphs import onnx as writing

    names = ("int4_32_zero", "int4_6", "palette", "half_")  # 4 bits, which PyTorch has not, among them
    folder, x, wanted = many("linear", {name: FORMATS[name] for name in names})
    whole = export(folder).out
    small = whole.stat().st_size
    whole.unlink()
    monkeypatch.setattr(writing, "MOST", 1000)
    done = export(folder)
    beside = done.out.with_name(f"{done.out.name}.data")
    assert done.out.stat().st_size + beside.stat().st_size < small + 4000
    assert beside.stat().st_size > small / 3  # the rest is the graph, and what is small
    found = answers(done.out, x)
    for name, one in wanted.items():
        assert apart(found[name], one) < 2e-6, name
    done.out.unlink()
    with pytest.raises(ArtifactError, match=r"\.onnx\.data exists already"):
        export(folder)
    assert not done.out.exists()


def test_a_module_without_an_example_is_refused(tmp_path: Path) -> None:
    from lissom import ModelError, save

    folder = save(nn.Sequential(nn.Linear(4, 2)), tmp_path / "bare")
    with pytest.raises(ModelError, match="save it with example="):
        export(folder)


def test_a_module_that_cannot_be_followed_is_refused_in_one_line(tmp_path: Path) -> None:
    from lissom import ModelError, save

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.blind = False

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if self.blind or bool((x > 0).all()) else x

    own = Own()
    own.blind = True
    folder = save(own, tmp_path / "own", example=torch.ones(2, 4))
    with pytest.raises(ModelError, match=r"torch\.export cannot follow Own"):
        export(folder, model=Own())
