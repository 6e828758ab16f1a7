"""Trits, five in a byte."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lissom.formats import Ternary
from lissom.formats.ternary import pack, unpack


@given(shape=st.tuples(st.integers(1, 6), st.integers(1, 23)), seed=st.integers(0, 2**16))
def test_packing_is_a_number_in_base_three(shape: tuple[int, int], seed: int) -> None:
    trits = torch.randint(3, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    octets = pack(trits)
    for row, line in zip(trits.tolist(), octets.tolist(), strict=True):
        fives = [row[first : first + 5] for first in range(0, len(row), 5)]
        assert line == [sum(trit * 3**place for place, trit in enumerate(five)) for five in fives]
    assert torch.equal(unpack(octets, shape[1]), trits)


def test_all_the_largest_trits_fit_a_byte() -> None:
    assert pack(torch.full((1, 5), 2, dtype=torch.uint8)).tolist() == [[242]]


def test_it_takes_eight_fifths_of_a_bit_and_the_scales() -> None:
    weight = Ternary.of(torch.ones(64, 320, dtype=torch.uint8), torch.ones(64, 2), None)
    assert weight.bits_per_weight == pytest.approx(1.6 + 16 / 160)
    assert weight.group == 160


def latents(weight: Ternary, original: Tensor) -> Tensor:
    trainable = weight.trainable()
    trainable.near(original)
    assert torch.equal(trainable(), weight.dense())
    latent = trainable.latent
    assert isinstance(latent, Tensor)
    return latent.detach()


def test_latent_weights_start_as_near_the_original_as_their_trits_allow() -> None:
    weight = Ternary.of(torch.tensor([[0, 1, 1, 2, 2, 2]], dtype=torch.uint8), torch.tensor([[2.0]]))
    found = latents(weight, torch.tensor([[-1.5, 0.4, 1.9, 1.9, 0.2, 9.0]]))
    torch.testing.assert_close(found, torch.tensor([[-1.5, 0.4, 0.98, 1.9, 1.02, 3.0]]))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_training_moves_trits_and_scales(rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(8, 20, generator=generator)
    weight = Ternary.of(torch.randint(3, (8, 20), dtype=torch.uint8, generator=generator), torch.full((8, 1), 0.5))
    trainable = weight.trainable()
    optimizer = torch.optim.Adam(trainable.parameters(), lr=rate / 5)
    for _ in range(60):
        optimizer.zero_grad()
        (trainable() - goal).square().sum().backward()
        optimizer.step()
    learned = trainable.weight()
    assert torch.equal(learned.dense(), trainable())
    assert (learned.dense() - goal).square().sum() < 0.4 * (weight.dense() - goal).square().sum()
    assert not torch.equal(learned.parts()["_packed"], weight.octets)
    assert not torch.equal(learned.parts()["_scale"], weight.scale)
