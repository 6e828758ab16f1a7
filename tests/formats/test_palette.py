"""Palettes whose entries stand for several inputs, and whose groups have scales."""

import json

import pytest
import torch
from torch import Tensor, nn

from lissom.formats import Affine, Palette, read_weight, wrap

CASES = [(1, 2, False), (1, 1, True), (2, None, False), (2, 3, True), (4, 1, True)]


def palette(width: int, groups: int | None, pruned: bool) -> tuple[Palette, Tensor]:
    """7 rows of 24 inputs, three rows a codebook of 8 entries; and the matrix by hand."""
    random = torch.Generator().manual_seed(0)
    books = torch.randn(3, 8 * width, generator=random).half()
    indices = torch.randint(8, (7, 24 // width), dtype=torch.uint8, generator=random)
    scale = None if groups is None else (0.5 + torch.rand(7, groups, generator=random)).half()
    kept = torch.rand(7, 24, generator=random) < 0.5 if pruned else None
    by_hand = torch.zeros(7, 24)
    for row in range(7):
        for j in range(24):
            if kept is None or kept[row, j]:
                by_hand[row, j] = books[row // 3, int(indices[row, j // width]) * width + j % width].float()
                by_hand[row, j] *= 1 if scale is None or groups is None else scale[row, j * groups // 24].float()
    return Palette.of(indices, books, 3, kept, width=width, scale=scale), by_hand


@pytest.mark.parametrize(("width", "groups", "pruned"), CASES)
def test_the_matrix_is_its_definition_and_comes_back(width: int, groups: int | None, pruned: bool) -> None:
    weight, by_hand = palette(width, groups, pruned)
    assert weight.shape == (7, 24)
    assert weight.bits == 3
    assert torch.equal(weight.dense(), by_hand)
    again = read_weight(json.loads(json.dumps(weight.spec())), weight.parts())
    assert torch.equal(again.dense(), by_hand)
    assert again.spec() == weight.spec()
    assert weight.nbytes == sum(part.nbytes for part in weight.parts().values())
    kept = weight.kept()
    assert (kept is None) == (not pruned)
    x = torch.randn(2, 24)
    torch.testing.assert_close(weight.linear(x), x @ by_hand.T)


@pytest.mark.parametrize(("width", "groups", "pruned"), CASES)
def test_training_moves_entries_and_scales_and_stays_in_the_format(
    width: int, groups: int | None, pruned: bool
) -> None:
    weight, by_hand = palette(width, groups, pruned)
    trainable = weight.trainable()
    assert torch.equal(trainable(), by_hand)
    optimizer = torch.optim.Adam(trainable.parameters(), lr=0.01)
    (trainable() - 1).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trainable.parameters())
    optimizer.step()
    assert not torch.equal(trainable(), by_hand)
    again = trainable.weight()
    assert torch.equal(again.dense(), trainable())
    assert again.spec() == weight.spec()
    assert (trainable()[by_hand == 0] == 0).all()


@pytest.mark.parametrize(("width", "groups", "pruned"), CASES)
def test_it_can_be_exported(width: int, groups: int | None, pruned: bool) -> None:
    weight, _ = palette(width, groups, pruned)
    layer = wrap(nn.Linear(24, 7), weight, trainable=False)
    x = torch.randn(3, 24)
    program = torch.export.export(nn.Sequential(layer), (x,)).module()
    torch.testing.assert_close(program(x), layer(x))


def test_codebooks_of_vectors_may_be_integers() -> None:
    weight, _ = palette(2, 3, True)
    book = Affine.of(torch.randint(256, (3, 16), dtype=torch.uint8), torch.full((3, 1), 0.01), None, 8)
    quantized = Palette(plane=weight.plane, codebook=book, rows=3, width=2, scale=weight.scale, mask=weight.mask)
    assert torch.equal(read_weight(quantized.spec(), quantized.parts()).dense(), quantized.dense())
    assert quantized.nbytes < weight.nbytes
