"""Weights in every format, and language models in which each layer has another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

OUT, IN = 24, 256
FORMS: dict[str, dict[str, Any]] = {
    **{f"{bits} bits": {"technique": "rtn", "bits": bits, "group": 64} for bits in (2, 3, 4, 5, 6, 8)},
    **{f"{b} bits, zeros": {"technique": "rtn", "bits": b, "group": 32, "symmetric": False} for b in (2, 3, 4, 5, 8)},
    "4 bits, rows": {"technique": "rtn", "bits": 4},
    "4 bits, 16": {"technique": "rtn", "bits": 4, "group": 16},
    "8 bits, inputs": {"technique": "dynamic"},
    "ternary": {"technique": "ternary"},
    "binary": {"technique": "binary"},
    "codebook": {"technique": "kmeans"},
    "pruned": {"technique": "magnitude", "sparsity": 0.5},
    "low rank": {"technique": "lowrank", "keep": 0.5},
}


@pytest.fixture
def weight() -> Callable[..., Any]:
    """A random matrix in one of the forms."""
    from lissom import compress_model
    from lissom.models.layers import weight_of

    def made(form: str, o: int = OUT, i: int = IN) -> Any:
        layer = nn.Sequential(nn.Linear(i, o))
        return weight_of(compress_model(layer, torch.randn(64, i), steps=[FORMS[form]])[0])

    return made


@pytest.fixture
def uneven(demo_folder: Path, tmp_path: Path) -> Path:
    """The demo model in 4 bits, with fewer neurons in one block and fewer heads in another."""
    from lissom import Recipe, compress_checkpoint

    narrower = [
        {"layers": "model.layers.1.*", "technique": "channels", "sparsity": 0.25},
        {"layers": "model.layers.2.*", "technique": "heads", "sparsity": 0.5},
    ]
    whole = {"layers": "model.layers.*", "technique": "rtn", "bits": 4, "group": 32}
    return compress_checkpoint(
        demo_folder, Recipe.of([*narrower, whole]), torch.randint(3, 2000, (2, 32)), tmp_path / "uneven"
    )


@pytest.fixture
def mixed(demo_folder: Path, tmp_path: Path) -> Path:
    """The demo model with a form of its own for nearly every layer."""
    from lissom import Recipe, compress_checkpoint

    names = [
        f"model.layers.{block}.{part}"
        for block in range(4)
        for part in ("self_attn.*", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    forms = [form for name, form in reversed(FORMS.items()) if name != "low rank"]
    steps = [{"layers": name, **form} for name, form in zip(names, forms, strict=False)]
    steps.append({"layers": "model.embed_tokens", "technique": "rtn", "bits": 8, "group": 64})
    return compress_checkpoint(demo_folder, Recipe.of(steps), torch.randint(3, 2000, (2, 32)), tmp_path / "mixed")
