"""torch.nn's attention set apart: what it says is the oracle, and it says the same however it is called."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.engine.lower import lower
from lissom.formats import CompressedLinear
from lissom.models import compressible
from lissom.models.apart import apart, set_apart
from lissom.models.multihead import Attention
from lissom.search.forms import units_of_module

HEADS, WIDE, BATCH, QUERIES, KEYS = 4, 16, 3, 5, 7
Kind = dict[str, Any]


def drawn(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def hidden(*size: int) -> Tensor:
    """A mask that hides about a third, and nothing of the first key."""
    mask = torch.rand(*size, generator=torch.Generator().manual_seed(8)) < 0.3
    mask[..., 0] = False
    return mask


def as_float(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, -torch.inf)


MASKS: dict[str, Kind] = {
    "none": {},
    "queries and keys": {"attn_mask": hidden(QUERIES, KEYS)},
    "each head": {"attn_mask": as_float(hidden(BATCH * HEADS, QUERIES, KEYS))},
    "keys": {"key_padding_mask": hidden(BATCH, KEYS)},
    "both": {"attn_mask": as_float(hidden(QUERIES, KEYS)), "key_padding_mask": as_float(hidden(BATCH, KEYS))},
}


def attention(**kind: Any) -> nn.MultiheadAttention:
    torch.manual_seed(3)
    made = nn.MultiheadAttention(WIDE, HEADS, **kind).eval()
    for name, parameter in made.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)  # torch.nn begins with none
    return made


def same(one: Any, other: Any) -> None:
    assert (one is None) == (other is None)
    if one is not None:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("asked", [{}, {"average_attn_weights": False}, {"need_weights": False}], ids=str)
@pytest.mark.parametrize("kind", [{}, {"batch_first": True}, {"kdim": 6, "vdim": 9}, {"bias": False}], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_it_says_the_same(mask: str, kind: Kind, asked: Kind) -> None:
    fused = attention(**kind)
    sizes = (WIDE, kind.get("kdim", WIDE), kind.get("vdim", WIDE))
    given = [drawn(BATCH, tokens, size) for tokens, size in zip((QUERIES, KEYS, KEYS), sizes, strict=True)]
    if not fused.batch_first:
        given = [part.transpose(0, 1) for part in given]
    said = (one(*given, **MASKS[mask], **asked) for one in (Attention(fused), fused))
    for made, wanted in zip(*said, strict=True):
        same(made, wanted)


@pytest.mark.parametrize("asked", [{}, {"need_weights": False}], ids=str)
@pytest.mark.parametrize("mask", ["none", "queries and keys", "keys"])
def test_without_a_batch_too(mask: str, asked: Kind) -> None:
    fused = attention()
    masks = {name: part[0] if name == "key_padding_mask" else part for name, part in MASKS[mask].items()}
    given = drawn(QUERIES, WIDE), drawn(KEYS, WIDE), drawn(KEYS, WIDE)
    for made, wanted in zip(*(one(*given, **masks, **asked) for one in (Attention(fused), fused)), strict=True):
        same(made, wanted)


def test_gradients_are_the_same() -> None:
    fused, x = attention(batch_first=True).train(), drawn(BATCH, QUERIES, WIDE)
    ours = Attention(fused)
    for one in (fused, ours):
        one(x, x, x)[0].square().sum().backward()
    same(ours.v_proj.weight.grad, fused.in_proj_weight.grad[2 * WIDE :])  # type: ignore[index]
    same(ours.out_proj.bias.grad, fused.out_proj.bias.grad)


def encoder(**more: Any) -> nn.TransformerEncoder:
    torch.manual_seed(5)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDE, HEADS, 24, batch_first=True), 2, **more).eval()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_transformer_of_torch_is_compressed_whole_and_runs(bits: int) -> None:
    """In evaluation without gradients, where torch.nn's layers would read all matrices at once."""
    model, x = encoder(enable_nested_tensor=False), drawn(BATCH, QUERIES, WIDE)
    quantized = lissom.quantize_model(model, x, bits=bits).eval()
    layers = compressible(quantized)
    assert len(layers) == 2 * 6
    assert all(isinstance(layer, CompressedLinear) for layer in layers.values())
    with torch.inference_mode():
        far = [(ran(x) - model(x)).square().mean() / model(x).var() for ran in (quantized, lower(quantized))]
    assert 0 < max(far) < (1e-3 if bits == 8 else 0.1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_is_padding_hides_the_same() -> None:
    """torch.nn leaves padding out of its tensors where it can, and says nothing there."""
    model, x = encoder(), drawn(BATCH, QUERIES, WIDE)
    padding = torch.arange(QUERIES) >= torch.tensor([[5], [3], [4]])
    with torch.inference_mode():
        wanted = model(x, src_key_padding_mask=padding)
        made = set_apart(model)(x, src_key_padding_mask=padding)
    same(made[~padding], wanted[~padding])
    assert model.use_nested_tensor


def test_a_whole_transformer_with_a_decoder() -> None:
    torch.manual_seed(2)
    model = nn.Transformer(WIDE, HEADS, 1, 1, 24, batch_first=True).eval()
    source, target = drawn(BATCH, KEYS, WIDE), drawn(BATCH, QUERIES, WIDE)
    mask = nn.Transformer.generate_square_subsequent_mask(QUERIES)
    with torch.inference_mode():
        wanted = model(source, target, tgt_mask=mask, tgt_is_causal=True)
        same(set_apart(model)(source, target, tgt_mask=mask, tgt_is_causal=True), wanted)


def test_names_and_what_they_share() -> None:
    """One attention under two names stays one, the tensors of all else too, and the queries' input is the keys'."""
    model = nn.ModuleDict({"a": encoder(), "head": nn.Linear(WIDE, 2)})
    model["b"] = model["a"]
    ours = set_apart(model)
    assert ours is not model
    assert ours["a"].layers[0].self_attn is ours["b"].layers[0].self_attn
    assert ours["head"].weight is model["head"].weight
    assert isinstance(model["a"].layers[0].self_attn, nn.MultiheadAttention)
    units = units_of_module(encoder(enable_nested_tensor=False), drawn(BATCH, QUERIES, WIDE))
    assert units["layers.0.self_attn.q_proj"] == tuple(f"layers.0.self_attn.{part}_proj" for part in "qkv")


@pytest.mark.parametrize("kind", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_what_is_asked_for_more_keys_stays_together(kind: Kind) -> None:
    model = nn.Sequential(attention(**kind))
    assert apart(model)[0] is model[0]
    assert set_apart(model) is model


class Patches(nn.Module):
    """A classifier of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder, self.head = nn.Linear(6, WIDE), encoder(), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))  # type: ignore[no-any-return]


def test_saved_it_says_the_same_with_its_code_and_without(tmp_path: Path) -> None:
    model, x = Patches().eval(), drawn(BATCH, QUERIES, 6)
    quantized = lissom.quantize_model(model, x)
    lissom.save(quantized, tmp_path / "out", example=x)
    with torch.inference_mode():
        wanted = quantized.eval()(x)
        same(lissom.load(tmp_path / "out", model=copy.deepcopy(model))(x), wanted)
        same(lissom.load(tmp_path / "out")(x), wanted)


def test_it_learns_and_loses_heads() -> None:
    model, x = Patches().eval(), drawn(64, QUERIES, 6)
    smaller = lissom.compress_model(model, x, steps=[{"technique": "heads", "sparsity": 0.5}])
    widths = {name: tuple(layer.weight.shape) for name, layer in compressible(smaller).items()}
    assert widths["encoder.layers.0.self_attn.q_proj"][0] < WIDE
    quantized = lissom.quantize_model(model, x, bits=2)
    learned = lissom.recover_model(quantized, x, lissom.Training(epochs=4, batch=16), original=model)
    assert learned.curve.after.held < learned.curve.before.held


def test_a_folder_from_before_holds_it_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = encoder(enable_nested_tensor=False), drawn(BATCH, QUERIES, WIDE)
    with monkeypatch.context() as before:
        before.setattr("lissom.artifact.module.apart", lambda given: given)
        lissom.save(model, tmp_path / "before")
    found = lissom.load(tmp_path / "before", model=encoder(enable_nested_tensor=False))
    assert any(type(part) is nn.MultiheadAttention for part in found.modules())
    with torch.inference_mode():
        same(found(x), model(x))
