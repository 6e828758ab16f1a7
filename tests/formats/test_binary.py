"""Signs with a scale for each group of inputs."""

import torch
from torch import Tensor

from lissom.formats import Binary


def test_each_group_of_a_row_has_its_scale() -> None:
    weight = Binary.of(torch.tensor([[True, False, True, False]]), torch.tensor([[0.5, 2.0]]))
    assert weight.group == 2
    assert weight.dense().tolist() == [[0.5, -0.5, 2.0, -2.0]]
    assert weight.nbytes == 4 + 2 * 2


def test_latent_weights_start_on_the_side_of_their_sign_as_far_out_as_the_original() -> None:
    weight = Binary.of(torch.tensor([[True, True, True, False, False]]), torch.tensor([[2.0]]))
    trainable = weight.trainable()
    trainable.near(torch.tensor([[1.5, 9.0, -1.0, -0.5, 0.3]]))
    assert torch.equal(trainable(), weight.dense())
    latent = trainable.latent
    assert isinstance(latent, Tensor)
    torch.testing.assert_close(latent.detach(), torch.tensor([[1.5, 2.0, 0.02, -0.5, -0.02]]))


def test_a_step_is_measured_in_the_scale_of_its_group() -> None:
    weight = Binary.of(torch.rand(2, 4) < 0.5, torch.tensor([[0.5, 2.0], [1.0, 3.0]]))
    trainable = weight.trainable()
    latent = trainable.latent
    unit = next(unit for parameter, unit in trainable.units().items() if parameter is latent)
    assert unit.tolist() == [[0.5, 0.5, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]
