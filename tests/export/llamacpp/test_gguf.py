"""A file for llama.cpp, read by its own package: tensors, numbers and tokenizer against the model they were made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lissom.artifact import open_folder
from lissom.errors import ArtifactError, ModelError
from lissom.export.targets import export_folder
from lissom.models.llamacpp import ARCHITECTURES, stretched

PLAIN: dict[str, dict[str, Any]] = {  # as the families are in the field: what llama.cpp computes
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 16},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "smollm3": {"pad_token_id": 0, "no_rope_layers": [1, 1]},
    "phi3": {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 0},
}


def field(reader: gguf.GGUFReader, name: str) -> Any:
    return reader.get_field(name).contents()


def tensors(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    return {
        one.name: torch.from_numpy(np.array(gguf.quants.dequantize(one.data, one.tensor_type)))
        for one in reader.tensors
    }


def unturned(rows: torch.Tensor, head: int) -> torch.Tensor:
    """The rows in the order of transformers: channels of a pair half a head apart."""
    return rows.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2)


def test_a_model_of_many_forms(mixed: Path, tmp_path: Path) -> None:
    done = export_folder(mixed, "gguf", tmp_path / "mixed.gguf", data=torch.randint(3, 2000, (2, 16)))
    reader = gguf.GGUFReader(tmp_path / "mixed.gguf")
    there, model = tensors(reader), open_folder(mixed).model
    matrix = model.model.layers[1].self_attn.q_proj.weight.dense()
    assert torch.allclose(unturned(there["blk.1.attn_q.weight"], 64), matrix, atol=1e-3)
    assert torch.equal(there["output_norm.weight"], model.model.norm.weight)
    assert "output.weight" not in there  # it is the embedding's
    types = {one.name: one.tensor_type.name for one in reader.tensors}
    for layer in done.layers:
        assert layer.form in types.values()
    assert {layer.own.split(",")[0] for layer in done.changed} == {"affine", "palette", "masked"}
    assert done.cost is not None
    assert done.cost.kl is not None
    assert 0 < done.cost.kl.value < 0.01
    assert sum(layer.nbytes for layer in done.layers) == sum(
        one.n_bytes for one in reader.tensors if not one.name.endswith("norm.weight")
    )


def test_narrower_blocks_get_zeros(uneven: Path, tmp_path: Path) -> None:
    export_folder(uneven, "gguf", tmp_path / "uneven.gguf")
    reader = gguf.GGUFReader(tmp_path / "uneven.gguf")
    there, model = tensors(reader), open_folder(uneven).model
    assert field(reader, "llama.feed_forward_length") == 768
    assert field(reader, "llama.attention.head_count") == 4
    own = model.model.layers[1].mlp.down_proj.weight.dense()
    assert own.shape[1] < 768
    assert torch.allclose(there["blk.1.ffn_down.weight"][:, : own.shape[1]], own, atol=1e-3)
    assert not there["blk.1.ffn_down.weight"][:, own.shape[1] :].any()
    assert not there["blk.2.attn_output.weight"][:, model.model.layers[2].self_attn.o_proj.in_features :].any()


def made(family: str, folder: Path, demo: Path, **more: Any) -> Path:
    """A model of a family that llama.cpp computes, with random weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 2048}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
    config = AutoConfig.for_model(family, **{**sizes, **heads, **PLAIN.get(family, {}), **more})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in demo.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_has_all_its_tensors(family: str, demo_folder: Path, tmp_path: Path) -> None:
    folder = made(family, tmp_path / "model", demo_folder)
    export_folder(folder, "gguf", tmp_path / "it.gguf")
    reader = gguf.GGUFReader(tmp_path / "it.gguf")
    there, name = tensors(reader), ARCHITECTURES[family].name
    assert field(reader, "general.architecture") == name
    assert field(reader, f"{name}.context_length") == 128
    assert sum(one.numel() for one in there.values()) == sum(p.numel() for p in open_folder(folder).model.parameters())
    model = open_folder(folder).model
    assert torch.equal(there["output_norm.weight"], model.model.norm.weight + ARCHITECTURES[family].offset)


@pytest.mark.parametrize(
    ("family", "more", "said"),
    [
        ("qwen3", {"attention_bias": True}, "o_proj.bias"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("gemma2", {"query_pre_attn_scalar": 8}, "query_pre_attn_scalar=8"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "without experts"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    family: str, more: dict[str, Any], said: str, demo_folder: Path, tmp_path: Path
) -> None:
    folder = made(family, tmp_path / "model", demo_folder, **more)
    with pytest.raises(ModelError, match=said):
        export_folder(folder, "gguf", tmp_path / "it.gguf")
    assert not (tmp_path / "it.gguf").exists()


def test_a_window_that_slides_bounds_the_context_where_there_is_none(demo_folder: Path, tmp_path: Path) -> None:
    for family, context in (("mistral", 6), ("gemma2", 128)):
        folder = made(family, tmp_path / family, demo_folder, sliding_window=6)
        export_folder(folder, "gguf", tmp_path / f"{family}.gguf")
        reader = gguf.GGUFReader(tmp_path / f"{family}.gguf")
        assert field(reader, f"{ARCHITECTURES[family].name}.context_length") == context
    assert field(reader, "gemma2.attention.sliding_window_pattern") == [True, False]


def test_the_tokenizer(demo_folder: Path, tmp_path: Path) -> None:
    export_folder(demo_folder, "gguf", tmp_path / "demo.gguf")
    reader, tokenizer = gguf.GGUFReader(tmp_path / "demo.gguf"), open_folder(demo_folder).tokenizer
    pieces = field(reader, "tokenizer.ggml.tokens")
    assert [tokenizer.convert_tokens_to_ids(piece) for piece in pieces] == list(range(2048))
    assert field(reader, "tokenizer.ggml.pre") == "gpt-2"
    assert field(reader, "tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert field(reader, "tokenizer.ggml.add_bos_token") is False
    assert field(reader, "tokenizer.ggml.token_type")[:3] == [3, 3, 3]


def test_a_tensor_stretches_the_wavelengths_as_transformers_does(tiny: Callable[..., Path]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    config = AutoConfig.for_model("llama", hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    plain = 1 / 5e5 ** (torch.arange(0, 128, 2) / 128)
    wanted = plain / LlamaRotaryEmbedding(config).inv_freq
    assert torch.allclose(torch.from_numpy(stretched(rope, 128)), wanted, rtol=1e-4)


def test_mistakes_are_named(demo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="exists already"):
        export_folder(demo_folder, "gguf", tmp_path)
    with pytest.raises(ValueError, match=r"no runtime is called 'ggfu'.*gguf"):
        export_folder(demo_folder, "ggfu", tmp_path / "x")
