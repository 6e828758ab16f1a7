from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.export.graphs.conftest import FORMATS, KINDS, dynamic, palette


@pytest.mark.parametrize(
    ("kind", "name", "form"),
    [
        ("linear", "int8", "MatMulNBits 8 bits, blocks of 32"),
        ("linear", "int4_48", "MatMulNBits 4 bits, blocks of 16"),
        ("linear", "int3", "MatMulNBits 4 bits, blocks of 16"),
        ("linear", "int2_zero", "MatMulNBits 2 bits, blocks of 16"),
        ("linear", "int8_6_zero", "DequantizeLinear uint8, groups of 6"),
        ("conv", "int4", "DequantizeLinear int4, a scale for each row"),
        ("embedding", "int4_32_zero", "GatherBlockQuantized 4 bits, blocks of 32"),
        ("embedding", "int4_6", "Gather int8, groups of 6"),
        ("linear", "palette", "Gather codebooks of 16 entries, indices of 8 bits"),
        ("linear", "low", "product of two: float16, and float16"),
        (
            "linear",
            "corrected",
            "MatMulNBits 4 bits, blocks of 32, and a correction: product of two: float16, and float16",
        ),
    ],
)
def test_a_form_says_by_which_node_a_weight_is_read(kind: str, name: str, form: str) -> None:
    from lissom.export.graphs.layers import holds

    sizes = {"linear": (96, 20), "embedding": (20, 96), "conv": (16, 20, (2, 3))}[kind]
    found = holds(FORMATS[name](torch.randn(20, 96)), KINDS[kind](*sizes))
    assert found is not None
    assert found.name == form


def test_bits_are_those_that_the_file_takes() -> None:
    from lissom.export.graphs.layers import holds

    matrix, layer = torch.randn(20, 96), nn.Linear(96, 20)
    four, zeros = holds(FORMATS["int4_16"](matrix), layer), holds(FORMATS["int4_6_zero"](matrix), layer)
    assert four is not None
    assert four.bits == 4 + 32 / 16
    assert zeros is not None
    assert zeros.bits == pytest.approx(4 + (32 + 4) / 6)


def test_inputs_of_8_bits_belong_to_the_node_and_others_are_rounded_before_it() -> None:
    from lissom.export.graphs.layers import holds

    matrix, layer = torch.randn(20, 96), nn.Linear(96, 20)
    told = [holds(dynamic(matrix, bits, bits=8), layer) for bits in (8, 4)]
    assert [one and one.name for one in told] == [
        "MatMulNBits 8 bits, blocks of 32, inputs of 8 bits",
        "MatMulNBits 8 bits, blocks of 32",
    ]


def test_what_openvino_would_multiply_wrongly_is_not_held_for_it() -> None:
    from lissom.export.graphs.layers import OPENVINO, holds

    weight = FORMATS["int4_6"](torch.randn(20, 96))
    assert holds(weight, nn.Linear(96, 20), asks=OPENVINO) is None
    assert holds(weight, nn.Embedding(20, 96), asks=OPENVINO) is None
    assert holds(weight, nn.Conv2d(16, 20, (2, 3)), asks=OPENVINO) is not None


def test_what_comes_nearest_is_held_and_near() -> None:
    from lissom.export.graphs.layers import holds, nearest
    from lissom.export.handover import apart

    weight, layer = palette(torch.randn(20, 96), width=2, kept=True), nn.Linear(96, 20)
    assert holds(weight, layer) is None
    near = nearest(weight, layer)
    assert holds(near, layer) is not None
    assert 0 < apart(weight, near) < 0.01


def test_layers_that_share_a_matrix_change_together(tiny: Callable[..., Path]) -> None:
    from lissom.export.handover import Given
    from lissom.models import compressible
    from lissom.models.layers import weight_of

    given = Given.of(tiny("llama", tied=True, blocks=1))
    name = given.same["lm_head"]
    assert name != "lm_head"
    taken = {**given.weights, name: FORMATS["int4"](given.weights[name].dense())}
    layers = compressible(given.changed(taken))
    assert weight_of(layers["lm_head"]).spec() == weight_of(layers[name]).spec() == taken[name].spec()
    assert layers["lm_head"].matrix is layers[name].matrix
