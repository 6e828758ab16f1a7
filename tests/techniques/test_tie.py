"""Layers tied to one base: the closed form against its definition, what turns gain, and wrong variants caught."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Affine, Dense, Sum
from lissom.statistics import Gram
from lissom.techniques.prune.magnitude import magnitude
from lissom.techniques.share.tie import fitted, shared_base, tie

Layer = tuple[Tensor, Tensor]  # its matrix, and its inputs


def three(o: int = 12, i: int = 16) -> list[Layer]:
    """Layers that have something in common; each one's inputs differ in what they drive, and by how much."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(o, i, generator=generator)
    found = []
    for size in (0.5, 1.0, 2.0):
        x = torch.randn(150, i, generator=generator) * (0.2 + torch.rand(i, generator=generator)) * size
        x = x @ (torch.eye(i) + 0.3 * torch.randn(i, i, generator=generator))
        found.append((common + 0.5 * torch.randn(o, i, generator=generator), x))
    return found


def gram(x: Tensor) -> Gram:
    found = Gram.zero(x.shape[1])
    found.see(x)
    return found


def given(layers: list[Layer]) -> list[tuple[Dense, Gram]]:
    return [(Dense(values=w), gram(x)) for w, x in layers]


def error(layers: list[Layer], replaced: list[Tensor]) -> float:
    return sum(float((x @ (w - v).T).square().sum()) for (w, x), v in zip(layers, replaced, strict=True))


def least_squares(layers: list[Layer]) -> Tensor:
    """The definition: one V for all outputs at once, every layer's inputs and outputs one below the other."""
    inputs = torch.cat([x for _, x in layers]).double()
    outputs = torch.cat([x.double() @ w.double().T for w, x in layers])
    return torch.linalg.lstsq(inputs, outputs).solution.T.float()


WRONG: dict[str, Callable[[list[Tensor], list[Tensor]], Tensor]] = {
    "the mean of the layers": lambda w, h: sum(w, torch.zeros_like(w[0])) / len(w),
    "weighted by the diagonals": lambda w, h: solved(w, [x.diagonal().diag() for x in h]),
    "every Gram at the next layer": lambda w, h: solved(w, h[1:] + h[:1]),
    "the Grams' mean on one side": lambda w, h: solved(w, h) * len(h),
    "one layer left out": lambda w, h: solved(w[1:], h[1:]),
    "divided before it is summed": lambda w, h: sum(
        (v @ x @ torch.linalg.inv(x) for v, x in zip(w, h, strict=True)), torch.zeros_like(w[0])
    ),
}


def solved(w: list[Tensor], h: list[Tensor]) -> Tensor:
    pull = torch.stack([v @ x for v, x in zip(w, h, strict=True)]).sum(0)
    return torch.linalg.solve(torch.stack(h).sum(0), pull.T).T


def right(found: Tensor, layers: list[Layer]) -> bool:
    return torch.allclose(found, least_squares(layers), rtol=0, atol=5e-3)


def test_the_base_is_the_least_squares_one() -> None:
    layers = three()
    grams = [gram(x) for _, x in layers]
    assert right(shared_base([w for w, _ in layers], grams), layers)
    assert right(solved([w for w, _ in layers], [x.mean for x in grams]), layers)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_base_is_caught(name: str) -> None:
    layers = three()
    assert not right(WRONG[name]([w for w, _ in layers], [gram(x).mean for _, x in layers]), layers)


def test_taking_turns_makes_the_error_smaller_every_time() -> None:
    layers = three()
    errors = [
        error(layers, [v.dense() for v in tie(given(layers), rank=3, bits=16, rounds=rounds)])
        for rounds in (1, 2, 4, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]
    alone = fitted([w for w, _ in layers], [gram(x) for _, x in layers], 3, 1)
    assert errors[0] < 0.5 * error(layers, [alone] * 3)


def test_all_have_the_same_object_for_a_base() -> None:
    found = tie(given(three()), rank=3)
    assert all(isinstance(v, Sum) and v.base is found[0].base for v in found)
    assert all(v.correction.rank == 3 for v in found)
    own = [v.nbytes - found[0].base.nbytes for v in found]
    assert found[0].base.nbytes + sum(own) < sum(w.values.half().nbytes for w, _ in given(three()))


def test_layers_that_differ_by_little_are_told_apart_by_their_corrections() -> None:
    """The same matrix and a difference of rank 2 each: hardly anything is lost."""
    generator = torch.Generator().manual_seed(5)
    common = torch.randn(12, 16, generator=generator)
    layers = [
        (common + torch.randn(12, 2, generator=generator) @ torch.randn(2, 16, generator=generator), x)
        for _, x in three()
    ]
    found = tie(given(layers), rank=4, bits=16, rounds=12)
    assert error(layers, [v.dense() for v in found]) < 1e-3 * error(layers, [torch.zeros(12, 16)] * 3)


def test_the_differences_make_good_for_the_rounding_of_the_base() -> None:
    layers = three(24, 32)
    found = tie(given(layers), rank=6, base=3, group=32)
    base = found[0].base
    assert isinstance(base, Affine)
    assert (base.bits, base.group) == (3, 32)
    assert all(v.base is base for v in found)
    plain = tie(given(layers), rank=6)
    carried = [base.dense() + v.correction.dense() for v in plain]
    assert error(layers, [v.dense() for v in found]) < error(layers, carried)


def test_inputs_that_no_layer_has_leave_the_mean() -> None:
    layers = [(w, torch.cat([x[:, :10], torch.zeros(150, 6)], 1)) for w, x in three()]
    base = shared_base([w for w, _ in layers], [gram(x) for _, x in layers])
    mean = torch.stack([w for w, _ in layers]).mean(0)
    torch.testing.assert_close(base[:, 10:], mean[:, 10:], rtol=0, atol=1e-4)
    assert all(v.dense().isfinite().all() for v in tie(given(layers), rank=2))


def test_it_runs_without_data() -> None:
    found = tie([(Dense(values=w), Gram.blank(16)) for w, _ in three()], rank=2)
    assert all(v.dense().isfinite().all() for v in found)


def test_what_cannot_be_tied_is_named() -> None:
    layers = given(three())
    with pytest.raises(RecipeError, match="1 layers, of 12x16, share no matrix"):
        tie(layers[:1])
    with pytest.raises(RecipeError, match="4 layers, of 12x16 and 16x12, share no matrix"):
        tie([*layers, (Dense(values=torch.randn(16, 12)), Gram.blank(12))])
    with pytest.raises(RecipeError, match="cannot keep each layer's pruned weights"):
        tie([(magnitude(layers[0][0], sparsity=0.5), layers[0][1]), *layers[1:]])
    with pytest.raises(RecipeError, match="rank=13 does not suit 12x16"):
        tie(layers, rank=13)
    with pytest.raises(RecipeError, match="rounds=0"):
        tie(layers, rank=3, rounds=0)
