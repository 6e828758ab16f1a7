"""Models that other tools have compressed, against the slow definitions of how they write."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lissom.artifact import open_folder
from lissom.artifact.foreign import awq, gptq, nf4, packed
from lissom.errors import ModelError
from lissom.formats import CompressedLayer, Dense, Masked

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AWQ: the outputs of a word, from its lowest nibble on
OUT, IN, GROUP = 32, 64, 32


def words(codes: list[int], bits: int) -> list[int]:
    """A stream of bits in words of 32, as signed numbers."""
    stream = sum(code << (bits * place) for place, code in enumerate(codes))
    found = [(stream >> (32 * word)) & 0xFFFFFFFF for word in range(len(codes) * bits // 32)]
    return [word - 2**32 if word >= 2**31 else word for word in found]


def drawn(bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [o, i], zeros [o, g] and scales."""
    codes, zero = torch.randint(0, 2**bits, (OUT, IN)), torch.randint(1, 2**bits, (OUT, IN // GROUP))
    return codes, zero, torch.rand(OUT, IN // GROUP).half() + 0.1


def dense(codes: Tensor, zero: Tensor, scale: Tensor, place: Tensor | None = None) -> Tensor:
    place = torch.arange(IN) // GROUP if place is None else place
    return (codes - zero[:, place]) * scale.float()[:, place]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq(bits: int, version: str) -> None:
    codes, zero, scale = drawn(bits)
    less = 1 if version == "gptq" else 0
    parts = {
        "qweight": torch.tensor([words(row, bits) for row in codes.tolist()], dtype=torch.int32).T.contiguous(),
        "qzeros": torch.tensor([words(row, bits) for row in (zero - less).T.tolist()], dtype=torch.int32),
        "scales": scale.T.contiguous(),
        "g_idx": (torch.arange(IN) // GROUP).int(),
    }
    found = gptq("it", parts, {"bits": bits, "checkpoint_format": version})
    assert torch.equal(found.dense(), dense(codes, zero, scale))
    shuffled = parts["g_idx"][torch.randperm(IN)]
    apart = gptq("it", {**parts, "g_idx": shuffled}, {"bits": bits, "checkpoint_format": version})
    assert isinstance(apart, Dense)
    assert torch.allclose(apart.dense(), dense(codes, zero, scale, shuffled.long()), rtol=1e-3)


def test_a_zero_above_the_highest_code() -> None:
    """The first version of GPTQ's files holds zeros less 1, so that the highest is 2^bits."""
    codes, _, scale = drawn(4)
    zero = torch.full((OUT, IN // GROUP), 16)
    parts = {
        "qweight": torch.tensor([words(row, 4) for row in codes.tolist()], dtype=torch.int32).T.contiguous(),
        "qzeros": torch.tensor([words(row, 4) for row in (zero - 1).T.tolist()], dtype=torch.int32),
        "scales": scale.T.contiguous(),
    }
    assert torch.equal(gptq("it", parts, {"bits": 4}).dense(), dense(codes, zero, scale))


def test_awq() -> None:
    codes, zero, scale = drawn(4)

    def interleaved(rows: Tensor) -> Tensor:
        eights = rows.unflatten(1, (-1, 8))[..., list(ORDER)].flatten(1)
        return torch.tensor([words(row, 4) for row in eights.tolist()], dtype=torch.int32)

    parts = {"qweight": interleaved(codes.T), "qzeros": interleaved(zero.T), "scales": scale.T.contiguous()}
    assert torch.equal(awq("it", parts, {"bits": 4, "version": "gemm"}).dense(), dense(codes, zero, scale))
    with pytest.raises(ModelError, match=r"'gemv'.*possible is 'gemm'"):
        awq("it", parts, {"bits": 4, "version": "gemv"})


@pytest.mark.parametrize("nested", [False, True])
def test_nf4(nested: bool) -> None:
    book, codes = torch.linspace(-1, 1, 16), torch.randint(0, 16, (OUT, IN))
    flat = codes.flatten()
    state: dict[str, Any] = {"shape": [OUT, IN], "blocksize": 64, "quant_type": "nf4"}
    scale = torch.rand(OUT * IN // 64) + 0.5
    parts = {
        "weight": (flat[::2] << 4 | flat[1::2]).to(torch.uint8).unsqueeze(1),
        "weight.quant_map": book,
        "weight.absmax": scale,
    }
    if nested:
        state |= {"nested_blocksize": 8, "nested_offset": 0.25}
        inner, octets, outer = (
            torch.linspace(-1, 1, 256),
            torch.randint(0, 256, (len(scale),)),
            torch.rand(len(scale) // 8) + 0.5,
        )
        scale = inner[octets] * outer.repeat_interleave(8) + 0.25
        parts |= {"weight.absmax": octets.to(torch.uint8), "weight.nested_absmax": outer}
        parts["weight.nested_quant_map"] = inner
    parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    wanted = (book[flat] * scale.repeat_interleave(64)).reshape(OUT, IN)
    assert torch.allclose(nf4("it", parts, {}).dense(), wanted, rtol=1e-3, atol=1e-3)


def test_compressed_tensors_in_8_bits() -> None:
    values, scale = torch.randint(-128, 128, (OUT, IN)).to(torch.int8), torch.rand(OUT, 1).half()
    whole = {"num_bits": 8, "type": "int", "symmetric": True}
    tokens = {"num_bits": 8, "type": "int", "dynamic": True}
    how: Any = {"config_groups": {"a": {"targets": ["re:.*other"], "weights": whole, "input_activations": None}}}
    how["config_groups"]["b"] = {"targets": ["Linear"], "weights": whole, "input_activations": tokens}
    found = packed("it", {"weight": values, "weight_scale": scale}, how)
    assert torch.equal(found.dense(), values.float() * scale.float())
    assert found.spec()["format"] == "dynamic"
    assert packed("another", {"weight": values, "weight_scale": scale}, how).spec()["format"] == "affine"
    floats: Any = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}, "input_activations": None}
    eights = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    found = packed("it", {"weight": eights, "weight_scale": scale}, {"config_groups": {"a": floats}})
    assert torch.allclose(found.dense(), eights.float() * scale.float(), rtol=1e-3)
    assert found.spec()["format"] == "floats"
    for strategy, format_ in (("token", "narrow"), ("tensor", "floats")):  # a scale for each row, or one for all
        floats["input_activations"] = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": strategy}
        again = packed("it", {"weight": eights, "weight_scale": scale}, {"config_groups": {"a": floats}})
        assert (again.spec()["format"], torch.equal(again.dense(), found.dense())) == (format_, True)


@pytest.fixture
def pruned(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint whose blocks were pruned 2:4, but for one layer, with what the folder says of that."""

    def made(config: dict[str, Any] | None = None, recipe: bool = False) -> Path:
        folder = shutil.copytree(tiny("llama"), tmp_path / "pruned")
        tensors = load_file(folder / "model.safetensors")
        for name, tensor in tensors.items():
            if "_proj" in name and "1.mlp.up" not in name:
                small = tensor.unflatten(1, (-1, 4)).abs().topk(2, 2, largest=False).indices
                tensor.view(len(tensor), -1, 4).scatter_(2, small, 0)
            tensors[name] = tensor.bfloat16()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        told = json.loads((folder / "config.json").read_text()) | (config or {})
        (folder / "config.json").write_text(json.dumps(told))
        if recipe:
            (folder / "recipe.yaml").write_text("test_stage: {}")
        return folder

    return made


SPARSE = {"sparsity_config": {"format": "dense", "sparsity_structure": "2:4"}}


@pytest.mark.parametrize("how", ["a recipe", "quantization_config", "compression_config", ""])
@pytest.mark.parametrize("bare", [False, True])
def test_zeros_of_a_pruned_checkpoint_are_its_mask(pruned: Callable[..., Path], how: str, bare: bool) -> None:
    config = {how: {"quant_method": "compressed-tensors", **SPARSE}} if how.endswith("config") else {}
    folder = pruned(config, recipe=how == "a recipe")
    tensors = load_file(folder / "model.safetensors")
    model: Any = open_folder(folder, bare=bare).model
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.k_proj"):
        layer, wanted = model.get_submodule(name), tensors[f"{name}.weight"]
        assert isinstance(layer, CompressedLayer) == bool(how)
        if how:
            assert isinstance(layer.weight, Masked)
            assert layer.weight.values.dtype == torch.bfloat16
            assert torch.equal(layer.weight.dense(), wanted.float())
            assert int(layer.weight.kept().sum()) == wanted.numel() // 2
    for name in ("model.layers.1.mlp.up_proj", "lm_head", "model.embed_tokens"):
        assert not isinstance(model.get_submodule(name), CompressedLayer)


def test_a_pruned_checkpoint_written_otherwise_is_refused(pruned: Callable[..., Path]) -> None:
    told = {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}
    with pytest.raises(ModelError, match=r"'sparse-24-bitmask', which is not read; write it as 'dense'"):
        open_folder(pruned({"quantization_config": told}))


def test_what_learns_keeps_the_zeros(pruned: Callable[..., Path], tiny: Callable[..., Path], tmp_path: Path) -> None:
    from lissom.recover.folder import recover_folder
    from lissom.recover.training import Training

    folder = pruned({"quantization_config": {"quant_method": "compressed-tensors", **SPARSE}})
    windows = torch.randint(3, 2000, (8, 12))
    training = Training(epochs=4, batch=4, lr=0.02)
    recover_folder(folder, windows, tmp_path / "out", training, original=tiny("llama"), held=windows)
    before, after = load_file(folder / "model.safetensors"), open_folder(tmp_path / "out").model
    name = "model.layers.0.mlp.down_proj"
    learned = after.get_submodule(name).weight.dense()
    assert torch.equal(learned != 0, before[f"{name}.weight"] != 0)
    assert not torch.equal(learned, before[f"{name}.weight"].float())


def test_a_tensor_that_is_missing_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "it")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="gptq has compressed the model, and no layer is written so"):
        open_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(4, 64, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj: gptq wrote no 'scales'"):
        open_folder(folder)
