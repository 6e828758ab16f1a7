"""What calibration remembers, held against its definition."""

import pytest
import torch

from lissom.statistics import Fisher, Gram, add_square, add_square_near, multiplies_bfloat16

WIDTHS = (1, 255, 256, 257, 600, 2100)  # one strip, one and a bit, several, and more than eight of the narrowest


@pytest.mark.parametrize("inputs", WIDTHS)
def test_square_is_what_its_definition_says(inputs: int) -> None:
    x = torch.randn(7, inputs)
    start = torch.randn(3, inputs)
    total = start.T @ start
    add_square(total, x)
    torch.testing.assert_close(total, start.T @ start + x.T @ x, rtol=1e-5, atol=1e-4)
    assert torch.equal(total, total.T)


@pytest.mark.parametrize("inputs", WIDTHS)
def test_square_of_bfloat16_is_near_its_definition(inputs: int) -> None:
    x = (torch.randn(512, inputs) + torch.randn(inputs)).bfloat16()
    off = torch.randn(inputs, inputs).bfloat16() / 64
    typical = x.T @ x / 512 + off + off.T
    start, wanted = torch.zeros(inputs, inputs), x.double().T @ x.double()
    add_square_near(start, x, typical)
    size = wanted.diagonal().sqrt()
    assert float(((start - wanted) / size / size.unsqueeze(1)).abs().max()) < 4e-4
    assert torch.equal(start, start.T)


@pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor multiplies bfloat16 by way of float32")
def test_a_gram_of_bfloat16_errs_far_less_than_rounding_its_products() -> None:
    mixed = torch.randn(4096, 32) @ torch.randn(32, 300) / 4 + torch.randn(300)
    x = (mixed + 0.1 * torch.randn(4096, 300)).bfloat16()
    gram, exact = Gram.zero(300), x.double().T @ x.double()
    for lot in x.split(1024):
        gram.see(lot)
    rounded = sum((lot.T @ lot).double() for lot in x.split(1024))
    size = exact.diagonal().sqrt()
    near, far = (
        torch.linalg.matrix_norm((found - exact) / size / size.unsqueeze(1), 2) for found in (gram.xtx, rounded)
    )
    assert near < far / 5
    assert gram.n == 4096
    torch.testing.assert_close(gram.sum.double(), x.double().sum(0), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("kind", [Gram, Fisher])
def test_two_lots_are_as_good_as_one(kind: type[Gram] | type[Fisher]) -> None:
    x = torch.randn(40, 600)
    whole, one, two = (kind.zero(600) for _ in range(3))
    whole.see(x)
    one.see(x[:13])
    two.see(x[13:])
    torch.testing.assert_close(one.merge(two).mean, whole.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.mean, x.T @ x / 40, rtol=1e-5, atol=1e-5)
