"""A folder of compressed-tensors, read by transformers and that package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lissom.artifact import open_folder
from lissom.export.grid import grid_of
from lissom.export.handover import Given
from lissom.export.packed import ANY, KERNELS, Scheme, alike, holds, scheme_of, written
from lissom.export.targets import export_folder

LAYER = nn.Linear(1, 1)
READ = {  # by transformers, and by the kernels of vLLM and SGLang
    "2 bits": (Scheme(bits=2, size=64, symmetric=True), Scheme(bits=4, size=64, symmetric=True)),
    "5 bits": (Scheme(bits=5, size=64, symmetric=True), Scheme(bits=8, size=64, symmetric=True)),
    "4 bits, zeros": (Scheme(bits=5, size=32, symmetric=True), Scheme(bits=4, size=32, symmetric=False)),
    "4 bits, rows": (Scheme(bits=4, size=0, symmetric=True), Scheme(bits=4, size=0, symmetric=True)),
    "ternary": (Scheme(bits=2, size=0, symmetric=True), Scheme(bits=4, size=0, symmetric=True)),
    "8 bits, inputs": (Scheme(bits=8, size=0, symmetric=True, inputs=True),) * 2,
    "5 bits, zeros": (Scheme(bits=6, size=32, symmetric=True), Scheme(bits=8, size=32, symmetric=True)),
    "8 bits, zeros": (None, None),
    "4 bits, 16": (None, None),
    "codebook": (None, None),
}


@pytest.mark.parametrize("form", READ)
def test_the_scheme_that_holds_a_weight(weight: Callable[..., Any], form: str) -> None:
    one = weight(form)
    assert (scheme_of(one, ANY), scheme_of(one, KERNELS)) == READ[form]
    assert (holds(ANY, one, LAYER) is None) == (READ[form][0] is None)


def read_back(found: dict[str, torch.Tensor], name: str, scheme: Scheme) -> torch.Tensor:
    """The matrix that was written, by the package that the layout is named after."""
    scale = found[f"{name}.weight_scale"].float()
    if scheme.inputs:
        codes = found[f"{name}.weight"].float()
    else:
        shape = torch.Size(found[f"{name}.weight_shape"].tolist())
        codes = unpack_from_int32(found[f"{name}.weight_packed"], scheme.bits, shape).float()
    if not scheme.symmetric:
        room = torch.Size(scale.shape)
        zero = unpack_from_int32(found[f"{name}.weight_zero_point"], scheme.bits, room, packed_dim=0).float()
        codes -= zero.repeat_interleave(shape[1] // room[1], 1)
    return codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)


@pytest.mark.parametrize("form", [form for form, (scheme, _) in READ.items() if scheme])
@pytest.mark.parametrize("reader", [ANY, KERNELS], ids=["any", "kernels"])
def test_what_is_written_is_read_as_it_was(weight: Callable[..., Any], form: str, reader: Any) -> None:
    one = weight(form)
    scheme, grid = scheme_of(one, reader), grid_of(one)
    assert scheme is not None
    assert grid is not None
    assert torch.allclose(read_back(written("it", grid, scheme), "it", scheme), one.dense(), rtol=1e-3)


@pytest.mark.parametrize("which", ["mixed", "uneven"])
@pytest.mark.filterwarnings("ignore")  # of what reads it
def test_transformers_says_the_same(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder, tokens = request.getfixturevalue(which), torch.randint(3, 2000, (2, 24))
    export_folder(folder, "transformers", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.inference_mode():
        p, q = (model(tokens).logits.log_softmax(-1) for model in (open_folder(folder).model, theirs))
    assert float((p.exp() * (p - q)).sum(-1).mean()) < (1e-6 if which == "uneven" else 1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("Once") == open_folder(folder).tokenizer.encode(
        "Once"
    )


def told(group: dict[str, Any]) -> str:
    """What a group of the config is called in a report."""
    weights = group["weights"]
    size = weights.get("group_size")
    return f"int{weights['num_bits']}, {f'groups of {size}' if size else 'a scale for each row'}"


def test_what_is_said_of_a_layer_is_what_is_written(uneven: Path, tmp_path: Path) -> None:
    done = export_folder(uneven, "transformers", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    forms = {name: told(group) for group in config["config_groups"].values() for name in group["targets"]}
    assert forms
    for layer in done.layers:
        assert layer.form == forms.get(layer.layer, "bfloat16"), layer
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    widest = tensors["model.layers.1.mlp.up_proj.weight_packed"].nbytes
    assert widest == tensors["model.layers.0.mlp.up_proj.weight_packed"].nbytes
    scales = tensors["model.layers.1.mlp.up_proj.weight_scale"].nbytes
    assert {one.layer: one.nbytes for one in done.layers}["model.layers.1.mlp.up_proj"] == widest + scales


def test_rows_of_one_scale_have_one_where_they_are_longer(demo_folder: Path, tmp_path: Path) -> None:
    from lissom import Recipe, compress_checkpoint

    narrower = {"layers": "model.layers.1.*", "technique": "channels", "sparsity": 0.25}
    steps = [narrower, {"layers": "model.layers.*.mlp.*", "technique": "dynamic"}]
    data = torch.randint(3, 2000, (2, 16))
    folder = compress_checkpoint(demo_folder, Recipe.of(steps), data, tmp_path / "in")
    done = export_folder(folder, "transformers", tmp_path / "out")
    form = {one.layer: one.form for one in done.layers}["model.layers.1.mlp.down_proj"]
    assert form == "int8, a scale for each row, inputs of 8 bits"
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["model.layers.1.mlp.down_proj.weight_scale"].shape[1] == 1


def test_what_is_run_as_one_has_one_scheme(demo_folder: Path, tmp_path: Path) -> None:
    from lissom import Recipe, compress_checkpoint

    steps = [
        {"layers": "*.q_proj", "technique": "rtn", "bits": 4, "group": 32},
        {"layers": "*.k_proj", "technique": "rtn", "bits": 8},
        {"layers": "*.v_proj", "technique": "rtn", "bits": 4, "group": 64, "symmetric": False},
        {"layers": "*.up_proj", "technique": "rtn", "bits": 4, "group": 32},
    ]
    folder = compress_checkpoint(demo_folder, Recipe.of(steps), torch.randint(3, 2000, (1, 16)), tmp_path / "in")
    done = export_folder(folder, "vllm", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = {name: number for number, group in told["config_groups"].items() for name in group["targets"]}
    block = "model.layers.0"
    assert len({groups[f"{block}.self_attn.{name}"] for name in ("q_proj", "k_proj", "v_proj")}) == 1
    assert {one.layer: one.form for one in done.layers}[f"{block}.self_attn.q_proj"] == "int8, groups of 32"
    weights = told["config_groups"][groups[f"{block}.self_attn.q_proj"]]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (8, 32, True)
    assert {f"{block}.mlp.up_proj", f"{block}.mlp.gate_proj", "lm_head"} <= set(told["ignore"])  # the gate is in floats


def test_zero_points_that_would_share_a_word_with_other_rows_are_none(weight: Callable[..., Any]) -> None:
    odd = weight("4 bits, zeros", o=20)
    assert scheme_of(odd, KERNELS) == Scheme(bits=8, size=32, symmetric=True)
    assert scheme_of(odd, KERNELS, (24, 256)) == Scheme(bits=4, size=32, symmetric=False)


def test_a_symmetric_grid_beside_one_that_is_not_has_zero_points_too(
    weight: Callable[..., Any], demo_folder: Path
) -> None:
    given, block = Given.of(demo_folder), "model.layers.0.self_attn"
    weights = {f"{block}.{name}_proj": weight(form) for name, form in (("q", "ternary"), ("k", "4 bits, zeros"))}
    own = {name: scheme_of(one, KERNELS) for name, one in weights.items()}
    joined = alike(KERNELS, {name: scheme for name, scheme in own.items() if scheme is not None}, given)
    assert set(joined.values()) == {Scheme(bits=4, size=32, symmetric=False)}
    for name, one in weights.items():
        grid = grid_of(one)
        assert grid is not None
        found = written(name, grid, joined[name])
        assert torch.allclose(read_back(found, name, joined[name]), one.dense(), rtol=1e-3)


def test_rows_that_fill_no_words_stay_in_floats(demo_folder: Path, tmp_path: Path) -> None:
    from lissom import Recipe, compress_checkpoint

    narrower = {"layers": "model.layers.*.mlp.*", "technique": "channels", "sparsity": 0.3}
    steps = [narrower, {"layers": "model.layers.*.mlp.*", "technique": "rtn", "bits": 4}]
    folder = compress_checkpoint(demo_folder, Recipe.of(steps), torch.randint(3, 2000, (2, 16)), tmp_path / "in")
    wide = open_folder(folder).model.config.intermediate_size
    assert wide % 32
    done = export_folder(folder, "vllm", tmp_path / "out")
    forms = {one.layer.rpartition(".")[2]: one.form for one in done.layers if ".mlp." in one.layer}
    assert forms == {"gate_proj": forms["up_proj"], "up_proj": "int4, a scale for each row", "down_proj": "bfloat16"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] == wide


def test_what_processors_do_not_run_is_counted(demo_folder: Path, tmp_path: Path) -> None:
    from lissom import Recipe, compress_checkpoint

    steps = [
        {"layers": "model.layers.0.*", "technique": "rtn", "bits": 8},
        {"layers": "model.layers.1.*", "technique": "dynamic"},
        {"layers": "model.layers.2.*", "technique": "rtn", "bits": 4, "group": 32},
    ]
    folder = compress_checkpoint(demo_folder, Recipe.of(steps), torch.randint(3, 2000, (1, 16)), tmp_path / "in")
    done = export_folder(folder, "vllm", tmp_path / "out")
    assert done.report == {"refused": {"layers that it runs on a GPU only": 7}}
    assert not export_folder(folder, "sglang", tmp_path / "other").report


def test_all_experts_of_a_block_have_one_scheme(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lissom import Recipe, compress_checkpoint

    steps = [
        {"layers": "*.mlp.*", "technique": "rtn", "bits": 4, "group": 32},
        {"layers": "*.experts.1.down_proj", "technique": "rtn", "bits": 8},
    ]
    folder = compress_checkpoint(tiny("qwen3_moe"), Recipe.of(steps), torch.randint(3, 2000, (2, 16)), tmp_path / "in")
    forms = {one.layer: one.form for one in export_folder(folder, "vllm", tmp_path / "out").layers}
    experts = {form for name, form in forms.items() if ".experts." in name}
    assert experts == {"int8, a scale for each row"}
    assert forms["model.layers.1.mlp.up_proj"] == "int4, a scale for each row"
