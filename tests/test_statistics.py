"""What calibration remembers, held against its definition."""

import pytest
import torch

from lissom.statistics import Fisher, Gram, add_square

WIDTHS = (1, 255, 256, 257, 600, 2100)  # one strip, one and a bit, several, and more than eight of the narrowest


@pytest.mark.parametrize("inputs", WIDTHS)
def test_square_is_what_its_definition_says(inputs: int) -> None:
    x = torch.randn(7, inputs)
    start = torch.randn(3, inputs)
    total = start.T @ start
    add_square(total, x)
    torch.testing.assert_close(total, start.T @ start + x.T @ x, rtol=1e-5, atol=1e-4)
    assert torch.equal(total, total.T)


@pytest.mark.parametrize("kind", [Gram, Fisher])
def test_two_lots_are_as_good_as_one(kind: type[Gram] | type[Fisher]) -> None:
    x = torch.randn(40, 600)
    whole, one, two = (kind.zero(600) for _ in range(3))
    whole.see(x)
    one.see(x[:13])
    two.see(x[13:])
    torch.testing.assert_close(one.merge(two).mean, whole.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.mean, x.T @ x / 40, rtol=1e-5, atol=1e-5)
