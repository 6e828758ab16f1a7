"""The table of forms: every one that suits a layer works on it, and siblings go together."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lissom.compress.layers import steps_on
from lissom.compress.stream import layer_names
from lissom.errors import ModelError
from lissom.formats import Dense
from lissom.models import FAMILIES, Checkpoint, compressible, weight_of
from lissom.search.forms import ORIGINAL, ROWS, SAFE, forms_of, kind_of, units_of_checkpoint, units_of_module

MODELS = [
    nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)),
    nn.Sequential(nn.Conv2d(1, 5, 3), nn.Conv2d(5, 5, 3, groups=5), nn.Flatten(), nn.Linear(5 * 4 * 4, 2)),
    nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(18, 2)),
]


@pytest.mark.parametrize("model", MODELS, ids=["linear", "convolutional", "embedding"])
def test_every_form_suits_every_layer_and_takes_what_it_says(model: nn.Module) -> None:
    for name, layer in compressible(model).items():
        forms, weight = forms_of(layer), weight_of(layer)
        assert list(forms)[:2] == [ORIGINAL, SAFE]
        assert len(set(map(str, forms.values()))) == len(forms) > 4
        made = {form: steps_on(name, weight, steps, None, weight) for form, steps in forms.items()}
        assert torch.equal(made[ORIGINAL].dense(), weight.dense())
        assert all(one.dense().isfinite().all() for one in made.values())
        assert made["3 bits"].nbytes <= made["4 bits"].nbytes <= made[SAFE].nbytes < made[ORIGINAL].nbytes


def test_the_group_is_the_widest_that_divides() -> None:
    groups = {width: forms_of(nn.Linear(width, 2))["4 bits"][0].knobs["group"] for width in (256, 192, 96, 100)}
    assert groups == {256: 128, 192: 64, 96: 32, 100: 0}
    assert "4 bits, fine" in forms_of(nn.Linear(256, 2))
    assert "4 bits, fine" not in forms_of(nn.Linear(96, 2))  # where it is what 4 bits are anyway


def test_a_convolution_has_a_scale_for_each_output_but_for_the_fine_forms() -> None:
    forms = forms_of(nn.Conv2d(32, 8, 3))
    groups = {name: forms[name][0].knobs["group"] for name in ("5 bits", "4 bits", "4 bits, fine", "2 bits")}
    assert groups == {"5 bits": 0, "4 bits": 0, "4 bits, fine": 36, "2 bits": 36}


@pytest.mark.parametrize(
    ("layer", "group"),
    [
        (nn.Conv2d(64, 8, 1), 32),  # of which one channel is one input
        (nn.Conv2d(12, 8, 5), 100),  # the fewest that are a multiple of four
        (nn.Conv2d(48, 8, 3, groups=2), 36),  # of the 24 that an output reads
        (nn.Conv2d(4, 8, 3), 0),  # of which it would be all
        (nn.Conv2d(3, 8, 3), 0),  # which no four divide
    ],
)
def test_the_fine_forms_of_a_convolution_group_whole_channels(layer: nn.Module, group: int) -> None:
    forms = forms_of(layer)
    assert forms["2 bits"][0].knobs["group"] == group
    assert ("4 bits, fine" in forms) == bool(group)


class Attending(nn.Module):
    """Three layers that read the same, one that reads what they make, and a head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x)
        said: torch.Tensor = self.head(self.o(self.q(x) * self.k(x) + self.v(x)))
        return said


def test_layers_that_are_given_the_same_or_share_a_matrix_are_one_unit() -> None:
    units = units_of_module(Attending(), torch.tensor([[1, 2]]))
    assert units == {"table": ("table", "head"), "q": ("q", "k", "v"), "o": ("o",)}


def test_a_module_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="ReLU has no Linear, Conv or Embedding layer"):
        units_of_module(nn.ReLU(), torch.ones(1))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_units_hold_every_layer_of_a_language_model_once(tiny: Callable[..., Path], family: str, tied: bool) -> None:
    checkpoint = Checkpoint(tiny(family, tied))
    layers = compressible(checkpoint.skeleton())
    names = layer_names(checkpoint, checkpoint.skeleton())
    units = units_of_checkpoint(checkpoint, names)
    assert sorted(layer for own in units.values() for layer in own) == sorted(names)
    assert all(unit == own[0] for unit, own in units.items())
    first = [own for unit, own in units.items() if unit.startswith(f"{checkpoint.family.blocks}.0.self_attn")]
    if any(name.endswith("q_proj") for name in names):
        assert {len(own) for own in first} == {3, 1}
    kinds = {kind_of(unit, layers) for unit in units if ".mlp.down_proj" in unit}
    assert len(kinds) <= 1  # alike in all blocks


def test_dense_weights_have_no_second_copy() -> None:
    layer = nn.Linear(4, 4)
    assert isinstance(steps_on("x", weight_of(layer), forms_of(layer)[ORIGINAL], None, weight_of(layer)), Dense)


def test_forms_with_a_scale_for_each_row_are_there_where_they_are_asked_for_and_others_are_not() -> None:
    wide, narrow = nn.Linear(256, 2), nn.Conv2d(32, 8, 3)
    assert set(forms_of(wide, rows=True)) - set(forms_of(wide)) == set(ROWS)
    assert forms_of(narrow, rows=True) == forms_of(narrow)  # whose 4 bits are that already
    assert forms_of(wide, rows=True)["4 bits a row"][0].knobs["group"] == 0
