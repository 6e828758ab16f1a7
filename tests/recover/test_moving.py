"""What moves while a model learns."""

import copy

import pytest
import torch
from torch import nn

import lissom
from lissom.errors import RecipeError
from lissom.formats import CompressedLayer, Sum, Turned, unfreeze
from lissom.models import compressible
from lissom.recover.moving import moving


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 5)).eval()


def compressed(model: nn.Module, *steps: dict[str, object]) -> nn.Module:
    return unfreeze(lissom.compress_model(model, steps=steps or ({"technique": "rtn", "bits": 4, "group": 8},)))


def test_phi_is_in_units_of_each_parameter() -> None:
    model = compressed(network())
    moves = moving(model)
    assert {*moves.names.values()} == {
        *(f"{layer}.matrix.{own}" for layer in "03" for own in ("latent", "log_growth")),
        *(
            f"{layer}.{own}"
            for layer in "013"
            for own in ("bias", "weight")
            if (layer, own) not in {("0", "weight"), ("3", "weight")}
        ),
    }
    before = {p: p.detach().clone() for p in moves.phi}
    with torch.no_grad():
        for phi in moves.phi.values():
            phi.fill_(0.25)
    moves.place()
    for p, was in before.items():
        assert torch.allclose(p, was + 0.25 * moves.units[p])
    latent = model[0].matrix.latent  # type: ignore[index, union-attr]
    assert torch.allclose(moves.units[latent], model[0].matrix.scale.abs().repeat_interleave(8, 1))  # type: ignore[index, union-attr, arg-type]
    assert all(float(moves.units[model[n].matrix.log_growth].min()) == pytest.approx(0.2) for n in (0, 3))  # type: ignore[union-attr, index, arg-type]
    model(torch.randn(3, 16)).square().sum().backward()
    gradients = {p: p.grad.clone() for p in moves.phi if p.grad is not None}
    moves.pull()
    for p, gradient in gradients.items():
        assert torch.allclose(moves.phi[p].grad, gradient * moves.units[p])  # type: ignore[arg-type]
        assert p.grad is None


def test_what_is_called_a_logarithm_by_others_is_like_all_of_theirs() -> None:
    plain = network()
    plain.register_parameter("log_sigma", nn.Parameter(torch.full((3,), 2.0)))
    moves = moving(compressed(plain))
    (sigma,) = (p for p, name in moves.names.items() if name == "log_sigma")
    assert moves.units[sigma].tolist() == [2, 2, 2]


def test_scales_are_what_is_few() -> None:
    model = compressed(
        network(),
        {"technique": "rtn", "bits": 4, "layers": "0"},
        {"technique": "kmeans", "bits": 2, "layers": "3", "rows": 0},
    )
    named = {*moving(copy.deepcopy(model), "scales").names.values()}
    assert "0.matrix.latent" not in named
    assert {"0.matrix.log_growth", "3.matrix.codebook.values", "1.weight", "0.bias"} <= named
    frozen = [name for name, p in model.named_parameters() if name not in {*moving(model, "scales").names.values()}]
    assert all(not p.requires_grad for name, p in model.named_parameters() if name in frozen)


def test_all_are_matrices_too_that_are_not_compressed() -> None:
    model = compressed(network(), {"technique": "rtn", "bits": 4, "layers": "0"})
    assert "3.weight" not in {*moving(copy.deepcopy(model)).names.values()}
    assert "3.weight" in {*moving(model, "all").names.values()}
    assert len(moving(network(), "all").phi) == 6


@pytest.mark.parametrize("train", ["weights", "scales", "lora"])
def test_where_nothing_is_compressed_nothing_moves(train: str) -> None:
    with pytest.raises(RecipeError, match=f"'{train}' moves nothing"):
        moving(network(), train)


def test_lora_changes_nothing_at_first_and_only_it_moves() -> None:
    plain = network()
    plain[3] = nn.Sequential(nn.Linear(24, 5))
    model = compressed(plain, {"technique": "hadamard", "layers": "0"}, {"technique": "rtn", "bits": 4})
    x = torch.randn(7, 16)
    before = model(x)
    moves = moving(model, "lora", rank=3)
    assert torch.allclose(model(x), before, atol=1e-6)
    assert {name.split(".")[-3] for name in moves.names.values()} == {"correction"}
    assert len(moves.phi) == 4
    weights = [layer.weight for layer in compressible(model).values() if isinstance(layer, CompressedLayer)]
    inner = [weight.base if isinstance(weight, Turned) else weight for weight in weights]
    assert all(isinstance(weight, Sum) and weight.correction.rank == 3 for weight in inner)
    loss = model(x).square().sum()
    loss.backward()
    moves.pull()
    assert any(float(phi.grad.abs().max()) > 0 for phi in moves.phi.values() if phi.grad is not None)
    again = moving(model, "lora", rank=3)  # what is there goes on
    assert {*again.phi} == {*moves.phi}
