"""Files of GGUF, opened: those that lissom has written, against the model that they were made of, and other types."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from lissom import Recipe, compress_checkpoint
from lissom.artifact import open_folder
from lissom.artifact.gguf import integers, split, weight_of
from lissom.errors import ModelError
from lissom.export.targets import export_folder
from lissom.formats import Affine, Dense
from lissom.models.llamacpp import ARCHITECTURES, SPLITS
from tests.export.llamacpp.test_gguf import made

TEXT = 'Once upon a time, there were 12 dogs.\nThey said: <pad> "Don\'t!"  Naïve.'


def said(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = open_folder(folder).model(tokens).logits
    return logits


def test_what_was_handed_over_comes_back(demo_folder: Path, tmp_path: Path) -> None:
    steps = [
        {"layers": "*.self_attn.*", "technique": "rtn", "bits": 4, "group": 64, "symmetric": False},
        {"layers": "*.gate_proj", "technique": "ternary"},
        {"layers": "*.up_proj", "technique": "rtn", "bits": 5, "group": 32},
        {"layers": "*.down_proj", "technique": "rtn", "bits": 8},
    ]
    tokens = torch.randint(3, 2000, (2, 24))
    folder = compress_checkpoint(demo_folder, Recipe.of(steps), tokens, tmp_path / "in")
    export_folder(folder, "gguf", tmp_path / "it.gguf")
    ours, back = open_folder(folder), open_folder(tmp_path / "it.gguf")
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        own, other = (one.model.get_submodule(f"model.layers.2.{name}").weight for one in (ours, back))
        assert type(own) is type(other)
        assert own.bits_per_weight == pytest.approx(other.bits_per_weight, abs=0.07), name
        assert torch.allclose(own.dense(), other.dense(), rtol=2e-3, atol=2e-3 * float(own.dense().abs().max()))
    assert torch.allclose(said(folder, tokens), said(tmp_path / "it.gguf", tokens), atol=0.05)
    assert back.tokenizer.encode(TEXT) == ours.tokenizer.encode(TEXT)
    assert back.tokenizer.decode(back.tokenizer.encode(TEXT)) == TEXT
    assert back.tokenizer.eos_token_id == ours.tokenizer.eos_token_id


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_says_what_it_said(family: str, demo_folder: Path, tmp_path: Path) -> None:
    folder, tokens = made(family, tmp_path / "model", demo_folder), torch.randint(3, 2000, (1, 12))
    export_folder(folder, "gguf", tmp_path / "it.gguf")
    assert torch.allclose(said(folder, tokens), said(tmp_path / "it.gguf", tokens), atol=1e-4)


def test_an_engine_serves_it(demo_folder: Path, tmp_path: Path) -> None:
    from lissom.engine.bench import engine
    from lissom.engine.lower import lower
    from lissom.engine.turn import once

    export_folder(demo_folder, "gguf", tmp_path / "it.gguf")
    opened = open_folder(tmp_path / "it.gguf", bare=True)
    model: Any = lower(opened.model)
    assert once(engine(model, opened.tokenizer, 1, 8, 4), 1, 8, 4)


def test_wavelengths_that_llama_3_stretches(demo_folder: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    folder = made("llama", tmp_path / "model", demo_folder, rope_parameters=rope, head_dim=64, hidden_size=256)
    export_folder(folder, "gguf", tmp_path / "it.gguf")
    back: Any = open_folder(tmp_path / "it.gguf").model
    assert isinstance(back.config, type(AutoConfig.for_model("llama")))
    assert {name: back.config.rope_parameters[name] for name in rope} == pytest.approx(rope)


def test_other_types_become_half_floats() -> None:
    kind = gguf.GGMLQuantizationType.Q4_K
    blocks = np.random.default_rng(0).integers(0, 60, (3, 2 * 144), dtype=np.uint8)
    found = weight_of(blocks, kind)
    assert isinstance(found, Dense)
    assert found.values.dtype == torch.float16
    assert torch.equal(found.values, torch.from_numpy(gguf.dequantize(blocks, kind)).half())


def test_a_minimum_that_is_no_multiple_of_the_step_is_no_zero() -> None:
    blocks = np.zeros((1, 1, 20), dtype=np.uint8)
    blocks[0, 0, :4] = np.array([0.5, -1.2], dtype=np.float16).view(np.uint8)
    assert integers(blocks.reshape(1, 20), "Q4_1") is None
    blocks[0, 0, :4] = np.array([0.5, -1.5], dtype=np.float16).view(np.uint8)
    found = integers(blocks.reshape(1, 20), "Q4_1")
    assert isinstance(found, Affine)
    assert found.zero is not None
    assert int(found.zero.codes()) == 3
    assert float(found.dense()[0, 0]) == -1.5


@pytest.mark.parametrize("name", ["gpt-2", "smollm", *SPLITS.values()])
def test_text_is_split_by_what_llama_cpp_calls_so(name: str) -> None:
    parts = [part for part, _ in split(Path("it"), name).pre_tokenize_str("I'm 1234 yes!")]
    assert "".join(parts) == "I'mĠ1234Ġyes!"
    assert ("1" in parts) == (name in ("smollm", "qwen2"))
    assert ("123" in parts) == (name == "llama-bpe")


def test_what_is_no_such_file_is_named(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "it.gguf").write_bytes(b"not at all" * 10)
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        open_folder(tmp_path / "it.gguf")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"'mamba'; known are llama, smollm3"):
        open_folder(tmp_path / "other.gguf")
    with pytest.raises(ModelError, match="splits text by 'bloom'; known are gpt-2"):
        split(Path("it"), "bloom")
