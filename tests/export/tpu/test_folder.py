"""What is handed over for TPUs, run again from its files alone on XLA's processor."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lissom.artifact import open_folder
from lissom.errors import ModelError, RecipeError
from lissom.export.targets import export_folder
from lissom.export.tpu.folder import dims_of, holds, nearest
from lissom.export.tpu.lower import array_of, jax_here

THERE = all(map(find_spec, ("jax", "torchax", "libtpu", "flatbuffers")))
compiler = pytest.mark.skipif(not THERE, reason="needs lissom[tpu]")


def program(folder: Path, name: str) -> Any:
    """A program of a folder with its weights, by JAX alone."""
    jax = jax_here()
    tensors = {name: array_of(name, tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    read = jax.export.deserialize(bytearray((folder / f"{name}.jax").read_bytes()))
    taken = {own: tensors[own] for own in read.in_tree.unflatten(read.in_avals)[0][0]}
    return lambda inputs: read.call(taken, inputs)


@pytest.fixture
def language(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A language model with a form of its own for nearly every layer."""
    from lissom import Recipe, compress_checkpoint

    steps = [
        {"layers": "model.embed_tokens", "technique": "rtn", "bits": 8, "group": 16},
        {"layers": "*.q_proj", "technique": "rtn", "bits": 4, "group": 16},
        {"layers": "*.o_proj", "technique": "rtn", "bits": 4, "group": 16, "symmetric": False},
        {"layers": "*.gate_proj", "technique": "dynamic"},
        {"layers": "*.up_proj", "technique": "kmeans"},
        {"layers": "*.down_proj", "technique": "rtn", "bits": 8, "symmetric": False},
    ]
    return compress_checkpoint(
        tiny("llama", tied=True, blocks=1), Recipe.of(steps), torch.randint(3, 2000, (2, 32)), tmp_path / "s"
    )


@compiler
def test_a_language_model_goes_on_as_it_does_here(language: Path, tmp_path: Path) -> None:
    done = export_folder(language, "tpu", tmp_path / "out", topology="v5e-4")
    assert {"int4, groups of 16", "int8, a scale for each row, inputs of 8 bits"} <= {one.form for one in done.layers}
    assert {one.layer.rpartition(".")[2] for one in done.changed} == {"up_proj"}
    told = json.loads((tmp_path / "out" / "report.json").read_text())["programs"]
    for name in ("prompt", "step"):
        found = told[name]["compiled"]
        assert found["fits"]
        assert found["chips"] == 4
        assert {"s4", "s8"} <= set(found["arguments"])
        assert told[name]["numerics"]["kl"] < 0.01
    tokens, room = torch.randint(3, 2000, (8, 129)), told["step"]["inputs"]
    cache = {name: jax_here().numpy.zeros(one["shape"], one["type"]) for name, one in room.items() if "cache" in name}
    prompt, step = (program(tmp_path / "out", name) for name in ("prompt", "step"))
    _, *held = prompt({"tokens": array_of("", tokens[:, :128]), "place": array_of("", torch.tensor(0)), **cache})
    given = {"tokens": array_of("", tokens[:, 128:]), "place": array_of("", torch.tensor(128))}
    said = step({**given, **{f"cache.{n}": part for n, part in enumerate(held)}})[0]
    with torch.no_grad():
        p = open_folder(language).model(tokens).logits[:, -1:].log_softmax(-1)
    q = torch.tensor(jax_here().device_get(said.astype("float32"))).log_softmax(-1)
    assert float((p.exp() * (p - q)).sum(-1).mean()) < 0.01


@compiler
def test_of_a_mixture_every_expert_is_given_every_token(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lissom import Recipe, compress_checkpoint

    steps = [{"layers": "*.experts.*", "technique": "rtn", "bits": 4, "group": 16}]
    nothing = torch.empty(0, 8, dtype=torch.long)
    small = compress_checkpoint(tiny("qwen3_moe", blocks=1), Recipe.of(steps), nothing, tmp_path / "small")
    done = export_folder(small, "tpu", tmp_path / "out", topology="v5e-4")
    experts = [one for one in done.layers if ".experts." in one.layer]
    assert {one.form for one in experts} == {"int4, groups of 16"}
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sum(".experts." in name for name in told["int4"]) == len(experts) == 9
    for name in ("prompt", "step"):
        assert told["programs"][name]["compiled"]["arguments"]["s4"] > 0
        assert told["programs"][name]["numerics"]["kl"] < 0.01


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.net(x)
        return made


@compiler
@pytest.mark.parametrize("bits", [8, 4])
def test_any_module_says_what_it_says_here(bits: int, tmp_path: Path) -> None:
    from lissom import compress_model, save

    small = compress_model(Digits(), torch.randn(32, 64), steps=[{"technique": "rtn", "bits": bits}])
    save(small, tmp_path / "small", example=torch.randn(2, 64))
    export_folder(tmp_path / "small", "tpu", tmp_path / "out", topology="v6e-1", model=Digits())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["programs"]["module"]["numerics"]["difference"] < 1e-5
    assert len(report["int4"]) == (3 if bits == 4 else 0)
    x = torch.randn(8, 64)
    (said,) = program(tmp_path / "out", "module")({"x": array_of("", x)})
    assert torch.allclose(torch.tensor(jax_here().device_get(said)), small(x), atol=1e-5)


@compiler
def test_so_does_a_text_encoder(text_encoder: Callable[..., Path], tmp_path: Path) -> None:
    export_folder(text_encoder(), "tpu", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())["programs"]["module"]
    assert told["inputs"]["input_ids"] == {"shape": [8, 48], "type": "int32"}
    assert told["numerics"]["difference"] < 1e-4


@compiler
def test_a_module_must_say_what_goes_in(tmp_path: Path) -> None:
    from lissom import save

    save(nn.Sequential(nn.Linear(4, 2)), tmp_path / "small")
    with pytest.raises(ModelError, match="does not say what goes in; save the module with example"):
        export_folder(tmp_path / "small", "tpu", tmp_path / "out")


def test_an_option_or_a_topology_that_does_not_exist_is_named(demo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'v9' is unknown; there are v5e-1"):
        export_folder(demo_folder, "tpu", tmp_path / "out", topology="v9")
    with pytest.raises(RecipeError, match="gguf has no option 'topology'; it has none"):
        export_folder(demo_folder, "gguf", tmp_path / "out", topology="v5e-1")


def test_what_comes_nearest_can_be_held(weight: Any) -> None:
    layer, one = nn.Linear(1, 1), weight("codebook")
    near = nearest(one, layer)
    assert holds(one, layer) is None
    form = holds(near, layer)
    assert form is not None
    assert form.name == "int8, groups of 32"
    assert form.bits == 8 + 16 / 32
    assert float((near.dense() - one.dense()).norm() / one.dense().norm()) < 0.01
    assert str(nearest(one, nn.Embedding(1, 1)).dense().dtype) == "torch.float32"


def test_outputs_and_inputs_of_what_a_layer_has() -> None:
    assert dims_of((4, 24, 64), "int4", (24, 256)) == ((1,), (0, 2))
    assert dims_of((4, 24), "scale", (24, 256)) == ((1,), (0,))
    assert dims_of((24, 256), "values", (24, 256)) == ((0,), (1,))
    assert dims_of((24,), "bias", (24, 256)) == ((0,), ())
