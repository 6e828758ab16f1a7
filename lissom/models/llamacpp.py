"""What llama.cpp calls the families, and how it keeps their tensors; for files of GGUF that are written or read."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

QKV = ("q_proj", "k_proj", "v_proj")
TURNED = QKV[:2]
STRETCHED = "rope_freqs.weight"
SLIDING = "sliding_attention"
EXPERT = re.compile(r"\.experts\.\d+\.")

LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPLITS = {  # the expression that splits text, and llama.cpp's name for it
    rf"{SHORT}|{LETTERS}|\p{{N}}{{1,3}}|{REST}": "llama-bpe",
    rf"{SHORT}|{LETTERS}|\p{{N}}|{REST}": "qwen2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What llama.cpp knows of a family.

    Args:
        name: what it calls it.
        neighbours: whether it turns neighbouring channels of a head by a position's angle, not those half a head apart.
        offset: what it adds to a norm's weight, which is written with it.
        biases: the layers whose biases it reads.
        slides: whether it has windows of attention that slide.
    """

    name: str
    neighbours: bool = False
    offset: float = 0.0
    biases: tuple[str, ...] = QKV
    slides: bool = False


LLAMA = Architecture(name="llama", neighbours=True, biases=(*QKV, "o_proj", "gate_proj", "up_proj", "down_proj"))
ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "smollm3": Architecture(name="smollm3", neighbours=True),
    "qwen2": Architecture(name="qwen2"),
    "qwen3": Architecture(name="qwen3"),
    "qwen3_moe": Architecture(name="qwen3moe"),
    "gemma2": Architecture(name="gemma2", offset=1.0, slides=True),
    "gemma3_text": Architecture(name="gemma3", offset=1.0, slides=True),
    "phi3": Architecture(name="phi3"),
}


def head_size(config: Any) -> int:
    """Channels of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def interleaved(outputs: int, head: int) -> Tensor:
    """Where each row of a matrix that makes heads comes from, when pairs of channels lie side by side.

    transformers turns channel j of a head with channel j + half; llama.cpp's llama turns 2 j with 2 j + 1.
    """
    return torch.arange(outputs).reshape(-1, 2, head // 2).transpose(1, 2).reshape(-1)


def stretched(rope: Mapping[str, Any], head: int) -> np.ndarray:
    """By what the wavelength of each pair is stretched: Llama 3.1's rule (Dubey et al., 2024, arXiv:2407.21783)."""
    low, high, old = (
        rope[name] for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    found = []
    for pair in range(0, head, 2):
        waves = old / (2 * math.pi * rope["rope_theta"] ** (pair / head))
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(found, dtype=np.float32)
