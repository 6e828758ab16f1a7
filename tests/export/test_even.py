"""Widths made even."""

import pytest
import torch

from lissom.errors import ModelError
from lissom.export.even import filled, widest
from lissom.models.families import family_of


def test_each_tensor_takes_the_largest_shape_of_its_kind() -> None:
    shapes = {
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        "model.layers.1.mlp.up_proj.weight": (6, 4),
        "model.layers.10.mlp.down_proj.weight": (4, 6),
        "model.norm.weight": (4,),
    }
    found = widest(shapes, family_of("llama"))
    assert found == shapes | {"model.layers.1.mlp.up_proj.weight": (8, 4)}


def test_layers_that_are_fused_have_no_room() -> None:
    shapes = {"model.layers.0.mlp.gate_up_proj.weight": (8, 4), "model.layers.1.mlp.gate_up_proj.weight": (6, 4)}
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.gate_up_proj.*no room"):
        widest(shapes, family_of("phi3"))


def test_zeros_go_to_the_end() -> None:
    found = filled(torch.ones(2, 3), (3, 5))
    assert found.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
