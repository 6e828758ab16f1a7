"""Models of transformers as modules: quantized whole, whatever their code asks of layers, and run by kernels too."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lissom
from lissom.engine.lower import lower
from lissom.formats import CompressedLayer
from lissom.models import compressible

WORDS = torch.randint(3, 96, (3, 10), generator=torch.Generator().manual_seed(6))
PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(7))
SOUND = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(8))
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
SEEN = {"image_size": 16, "patch_size": 8, **BLOCKS}
BOTH = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
HEARD = {**BOTH, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "num_mel_bins": 8, "max_source_positions": 12}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
    "ViT": (SEEN, {"pixel_values": PIXELS}),
    "CLIPVision": (SEEN, {"pixel_values": PIXELS}),
    "SiglipVision": (SEEN, {"pixel_values": PIXELS}),
    "Dinov2": (SEEN, {"pixel_values": PIXELS}),
    "ConvNext": ({"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, {"pixel_values": PIXELS.repeat(1, 1, 2, 2)}),
    "GPT2": ({"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 96}, {"input_ids": WORDS}),
    "Falcon": (
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 96, "bias": True},
        {"input_ids": WORDS},
    ),
    "T5": (
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 96},
        {"input_ids": WORDS, "decoder_input_ids": WORDS},
    ),
    "Whisper": ({**HEARD, "vocab_size": 96, "pad_token_id": 0}, {"input_features": SOUND, "decoder_input_ids": WORDS}),
}


def said(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(**batch).last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_quantized_whole_and_runs(name: str) -> None:
    config, batch = MODELS[name]
    torch.manual_seed(9)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config)).eval()
    wanted = said(model, batch)
    quantized = lissom.quantize_model(model, batch).eval()
    assert all(isinstance(layer, CompressedLayer) for layer in compressible(quantized).values())
    left = [n for n, p in quantized.named_parameters() if p.dim() > 1 and min(p.shape[-2:]) > 1 and ".matrix." not in n]
    assert [name for name in left if "position" not in name] == []
    for ran in (quantized, lower(quantized)):
        assert 0 < (said(ran, batch) - wanted).abs().mean() < 0.05 * wanted.abs().mean()


OPENED = """
import sys
import lissom
from safetensors.torch import load_file, save_file

said = lissom.load(sys.argv[1])(**load_file(sys.argv[2])).logits
save_file({"logits": said.detach()}, sys.argv[3])
"""


def test_what_it_gives_back_is_known_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Where nobody has imported transformers yet."""
    config, batch = transformers.ViTConfig(**SEEN, num_labels=3), {"pixel_values": PIXELS}
    quantized = lissom.quantize_model(transformers.ViTForImageClassification(config), batch).eval()
    lissom.save(quantized, tmp_path / "out", example=batch)
    save_file(batch, tmp_path / "given")
    subprocess.run([sys.executable, "-c", OPENED, *(tmp_path / n for n in ("out", "given", "said"))], check=True)
    with torch.no_grad():
        wanted = quantized(**batch).logits
    torch.testing.assert_close(load_file(tmp_path / "said")["logits"], wanted, rtol=1e-5, atol=1e-6)
