"""Channels that change places, in memory and streamed: the function stays, and an N:M pattern keeps more."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import lissom
from lissom.artifact import open_folder
from lissom.compress.reshape import joints_of
from lissom.errors import RecipeError
from lissom.models import FAMILIES
from lissom.models.apart import apart
from lissom.models.couplings import Axis
from lissom.techniques.prune.permute import kept_score
from lissom.techniques.prune.ria import relative_importance

PATTERN = {"keep": 2, "of": 4}


def said(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, Tensor) else found.logits


def convolved() -> tuple[nn.Module, Tensor]:
    """1 x 1 convolutions with batch norm, one of them in groups, and what is read as pixels of a flattened map."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.PReLU(16),
        nn.Conv2d(16, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 20), nn.GELU(),
        nn.Linear(20, 3),
    ).eval()  # fmt: skip
    for part in (model[1], model[4], model[6]):
        part.weight.data = torch.rand_like(part.weight) + 0.5  # type: ignore[union-attr, arg-type]
    model.train()(torch.randn(64, 3, 6, 6) * 3 + 1)
    return model.eval(), torch.randn(32, 3, 6, 6)


def kept_of(model: nn.Module, name: str, x: Tensor) -> float:
    """RIA's score of what 2:4 keeps of a layer."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda layer, given, made: seen.append(given[0]))
    said(model, x)
    handle.remove()
    weight = model.get_submodule(name).weight.detach().flatten(1)
    power = seen[0].movedim(1, -1) if seen[0].dim() == 4 else seen[0]
    return kept_score(
        relative_importance(weight) * power.flatten(0, -2).square().mean(0).sqrt().sqrt(), torch.arange(weight.shape[1])
    )


def test_channels_change_places_and_the_function_stays() -> None:
    model, x = convolved()
    after = lissom.compress_model(model, x, steps=[{"technique": "permute", **PATTERN}])
    torch.testing.assert_close(said(after, x), said(model, x), rtol=1e-4, atol=1e-5)
    for name in ("5", "11"):
        assert kept_of(after, name, x) > 1.01 * kept_of(model, name, x)
    for name in ("0", "1", "3", "4", "9"):  # made, normalized, grouped, sloped, and the neurons between
        assert not torch.equal(after.get_submodule(name).weight, model.get_submodule(name).weight)
    assert torch.equal(after[6].weight, model[6].weight)  # the groups of a flattened map hold pixels of one channel
    pruned = lissom.compress_model(after, x, steps=[{"technique": "ria", "layers": "5", **PATTERN}])
    assert pruned[5].weight.kept().reshape(-1, 4).sum(1).eq(2).all()


def feed(block: Any) -> Any:
    """The layers behind attention; of experts the last."""
    return block.mlp.experts.get_submodule("2") if hasattr(block.mlp, "experts") else block.mlp


def made(block: Any) -> tuple[Tensor, ...]:
    """The matrices that make queries, values, gates and what is gated, also where one layer makes several."""
    if hasattr(block.mlp, "gate_up_proj"):
        query, _, value = block.self_attn.qkv_proj.weight.split([32, 16, 16])
        return query, value, *block.mlp.gate_up_proj.weight.chunk(2)
    layers = (block.self_attn.q_proj, block.self_attn.v_proj, feed(block).gate_proj, feed(block).up_proj)
    return tuple(layer.weight for layer in layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_changes_places_within_heads_and_among_neurons(
    family: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, ids = tiny(family), torch.randint(2048, (8, 16))
    step = {"technique": "permute", "layers": "model.layers.*", **PATTERN}
    out = lissom.compress_checkpoint(source, lissom.Recipe.of([step]), ids, tmp_path / "out")
    model: Any = apart(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32))
    after: Any = open_folder(out).model
    torch.testing.assert_close(said(after, ids), said(model, ids), rtol=1e-4, atol=1e-5)
    for old, new in zip(model.model.layers, after.model.layers, strict=True):
        (query, value, gate, up), (query_then, value_then, gate_then, up_then) = made(new), made(old)
        assert torch.equal(query, query_then)
        rows = torch.cdist(value, value_then).argmin(1)
        assert (rows // 8).tolist() == (torch.arange(16) // 8).tolist()
        assert (rows != torch.arange(16)).any()
        neurons = torch.cdist(feed(new).down_proj.weight.T, feed(old).down_proj.weight.T).argmin(1)
        assert torch.equal(gate, gate_then[neurons])
        assert torch.equal(up, up_then[neurons])
    whole = lissom.compress_model(model, ids, steps=[step])
    assert all(torch.equal(p, after.state_dict()[name]) for name, p in whole.state_dict().items())


@pytest.mark.parametrize("first", [True, False])
def test_heads_go_and_their_values_change_places_in_one_phase(first: bool, tiny: Callable[..., Path]) -> None:
    ids = torch.randint(2048, (8, 16))
    model: Any = AutoModelForCausalLM.from_pretrained(tiny("qwen2"), dtype=torch.float32)
    move, heads = {"technique": "permute", **PATTERN}, {"technique": "heads", "sparsity": 0.5}
    steps = [move, heads] if first else [heads, move]
    found: Any = lissom.compress_model(model, ids, steps=steps)
    plain = lissom.compress_model(model, ids, steps=[heads])
    torch.testing.assert_close(said(found, ids), said(plain, ids), rtol=1e-3, atol=1e-4)
    assert not torch.equal(found.model.layers[0].self_attn.v_proj.weight, plain.model.layers[0].self_attn.v_proj.weight)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_changes_places_too(family: str, tied: bool, tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, ids = tiny(family, tied), torch.randint(2048, (8, 16))
    step = {"technique": "permute_stream", **PATTERN}
    out = lissom.compress_checkpoint(source, lissom.Recipe.of([step]), ids, tmp_path / "out")
    model: Any = apart(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32))
    after: Any = open_folder(out).model
    torch.testing.assert_close(said(after, ids), said(model, ids), rtol=1e-4, atol=1e-5)
    order = torch.cdist(after.model.embed_tokens.weight.T, model.model.embed_tokens.weight.T).argmin(1)
    assert sorted(order.tolist()) == list(range(32)) != order.tolist()
    for old, new in zip(model.model.layers, after.model.layers, strict=True):
        for there, then in zip(made(new), made(old), strict=True):
            assert torch.equal(there, then[:, order])
        assert torch.equal(feed(new).down_proj.weight, feed(old).down_proj.weight[order])


def test_what_follows_an_order_of_the_stream_is_streamed(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, ids = tiny("llama"), torch.randint(2048, (8, 16))
    pattern = {"layers": "model.layers.*", **PATTERN}
    first, others = (
        {"technique": "permute_stream", **PATTERN},
        [{"technique": t, **pattern} for t in ("permute", "ria")],
    )
    moved = lissom.compress_checkpoint(source, lissom.Recipe.of([first]), ids, tmp_path / "moved")
    for file in moved.glob("lissom*"):
        file.unlink()
    config = json.loads((moved / "config.json").read_text())
    config.pop("quantization_config", None)
    (moved / "config.json").write_text(json.dumps(config))
    apart = lissom.compress_checkpoint(moved, lissom.Recipe.of(others), ids, tmp_path / "apart")
    at_once = lissom.compress_checkpoint(source, lissom.Recipe.of([first, *others]), ids, tmp_path / "at_once")
    assert torch.equal(said(open_folder(at_once).model, ids), said(open_folder(apart).model, ids))
    with pytest.raises(RecipeError, match="permute_stream needs the whole model in memory; leave out max_ram"):
        lissom.compress_checkpoint(source, lissom.Recipe.of([first]), ids, tmp_path / "no", max_ram=2**33)


MUTANTS: dict[str, Callable[[Axis, Tensor], Tensor]] = {
    "all in their old places": lambda axis, alive: torch.arange(len(axis.units)),
    "the order turned round": lambda axis, alive: KEPT(axis, alive.argsort()),
    "vectors left alone": lambda axis, alive: KEPT(axis, alive if axis.tensor[0] in "0359" else alive.sort().values),
    "only what makes them": lambda axis, alive: KEPT(axis, alive.sort().values if axis.dim else alive),
}
KEPT = Axis.kept


@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_does_not_move_alike_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolved()
    step = {"technique": "permute", "layers": "[03]"}
    right = kept_of(lissom.compress_model(model, x, steps=[step]), "5", x)
    monkeypatch.setattr("lissom.compress.reshape.proved", lambda *given: True)
    monkeypatch.setattr(Axis, "kept", MUTANTS[mutant])
    after = lissom.compress_model(model, x, steps=[step])
    same = torch.allclose(said(after, x), said(model, x), rtol=1e-4, atol=1e-5)
    assert not same or kept_of(after, "5", x) < 0.999 * right


def test_units_that_cannot_change_places_are_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convolved()
    assert len(joints_of(model, x)) == 3
    monkeypatch.setattr(Axis, "kept", MUTANTS["vectors left alone"])
    assert len(joints_of(model, x)) < 3
