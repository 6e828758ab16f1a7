"""The forms of benchmarks/gpu.py: layers and whole models of random weights, made where they are to run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lissom.engine.kernels.sparse import SparseLinear
from lissom.engine.lower import lower
from lissom.formats import Affine, Dense, Dynamic, Floats, Masked, Narrow, Palette, Weight, wrap
from lissom.formats.floats import KINDS, held
from lissom.models import compressible
from lissom.models.families import put

GROUP = 128
SIZES = {"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}


def affine(bits: int, zeros: bool, o: int, i: int, device: str) -> Affine:
    """Integers in groups of 128, or of a whole row where that does not divide it."""
    groups = i // GROUP if i % GROUP == 0 and bits < 8 else 1
    codes = torch.randint(2**bits, (o, i), dtype=torch.uint8, device=device)
    scale = (torch.rand(o, groups, device=device) + 0.5) / (2**bits * i**0.5)
    zero = torch.randint(2**bits, (o, groups), dtype=torch.uint8, device=device) if zeros else None
    return Affine.of(codes, scale, zero, bits)


def palette(o: int, i: int, device: str) -> Palette:
    """A codebook of 16 entries for each output."""
    indices = torch.randint(16, (o, i), dtype=torch.uint8, device=device)
    return Palette.of(indices, torch.randn(o, 16, device=device) / i**0.5, 1)


def floats(kind: str, o: int, i: int, device: str) -> Floats:
    """Small floats."""
    form, w = KINDS[kind], torch.randn(o, i, device=device) / i**0.5
    groups = i // form.group if form.group and i % form.group == 0 else 1
    whole = w.new_tensor([0.01]) if form.overall else None
    largest = w.unflatten(1, (groups, -1)).abs().amax(-1) / form.largest / (1 if whole is None else 0.01)
    return Floats.of(w, held(form, largest), whole, kind)


def pruned(o: int, i: int, device: str) -> Masked:
    """Two of four."""
    w = torch.randn(o, i, device=device).bfloat16() / i**0.5
    kept = torch.rand(o, i // 4, 4, device=device).argsort(-1).argsort(-1) < 2
    return Masked.of(w, kept.flatten(1))


FORMS: dict[str, Callable[[int, int, str], Weight]] = {
    "bf16": lambda o, i, device: Dense(values=torch.randn(o, i, device=device).bfloat16() / i**0.5),
    "int8": lambda o, i, device: affine(8, False, o, i, device),
    "int4 g128": lambda o, i, device: affine(4, False, o, i, device),
    "int4 g128, zeros": lambda o, i, device: affine(4, True, o, i, device),
    "int3 g128": lambda o, i, device: affine(3, False, o, i, device),
    "16 entries": palette,
    "nvfp4": lambda o, i, device: floats("nvfp4", o, i, device),
    "float8": lambda o, i, device: floats("fp8_e4m3", o, i, device),
    "float8, inputs too": lambda o, i, device: Narrow(floats=floats("fp8_e4m3", o, i, device)),
    "int8, inputs too": lambda o, i, device: Dynamic(affine=affine(8, False, o, i, device), inputs=8),
    "int4, inputs int8": lambda o, i, device: Dynamic(affine=affine(4, False, o, i, device), inputs=8),
    "2 of 4": pruned,
}
IN_STEPS = ("bf16", "int8", "int4 g128", "16 entries", "float8", "float8, inputs too", "int8, inputs too", "2 of 4")


def layer_of(weight: Weight, device: str) -> nn.Module:
    """One layer, on the kernel that fits it; on a CPU it stays as it is."""
    with torch.device("meta"):
        inner = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    if isinstance(weight, Dense):
        inner.weight = nn.Parameter(weight.values, requires_grad=False)
        return inner
    layer = wrap(inner, weight)
    return layer if device == "cpu" else lower(nn.Sequential(layer))[0]  # type: ignore[index, no-any-return]


def layers_of(form: str, o: int, i: int, nbytes: int) -> list[nn.Module]:
    """As many layers on a GPU as have so many bytes of weights, one at least."""
    first = layer_of(FORMS[form](o, i, "cuda"), "cuda")
    count = max(1, -(-nbytes // read_bytes(first)))
    return [first, *(layer_of(FORMS[form](o, i, "cuda"), "cuda") for _ in range(count - 1))]


def read_bytes(layer: Any) -> int:
    """The bytes of weights that a product reads."""
    if isinstance(layer, SparseLinear):
        return layer.weight.numel() * 9 // 8  # half of the weights in two bytes, and two bits for each
    weight = layer.weight
    return weight.numel() * weight.element_size() if isinstance(weight, Tensor) else weight.nbytes  # type: ignore[no-any-return]


def whole_model(form: str, blocks: int) -> Any:
    """A Llama 3.1 8B of so many blocks with random weights, its layers in a form; embedding and head in bfloat16."""
    config = AutoConfig.for_model("llama", **SIZES, **HEADS, num_hidden_layers=blocks, rope_theta=500000.0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    names = [name for name, layer in compressible(model).items() if ".layers." in name and isinstance(layer, nn.Linear)]
    for name in names:
        o, i = model.get_submodule(name).weight.shape  # type: ignore[union-attr]
        put(model, name, layer_of(FORMS[form](o, i, "cuda"), "cuda"))
    for name, p in list(model.named_parameters()):
        if p.is_meta:
            owner, _, own = name.rpartition(".")
            drawn = torch.ones if "norm" in name else torch.randn
            made = drawn(p.shape, device="cuda", dtype=torch.bfloat16) * (1 if "norm" in name else 0.02)
            setattr(model.get_submodule(owner), own, nn.Parameter(made, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to("cuda")
    return model.eval()
