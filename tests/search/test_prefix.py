"""What comes before a layer is computed once, and what is said is the same to the bit."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.compress.layers import steps_on
from lissom.evaluate import metric
from lissom.formats import Weight
from lissom.models import compressible, replace, weight_of
from lissom.search import prefix
from lissom.search.fill import apart_by, twin
from lissom.search.yardstick import Yardstick
from lissom.types import Step


class Counted(nn.Conv2d):
    """A convolution that tells how often one of its kind was run; a subclass is not compressed."""

    ran = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).ran += 1
        return super().forward(x)


class Block(nn.Module):
    """A residual block that writes over what it has made, and gives two things if it is asked to."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu, self.same = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Identity()
        self.several = several

    def forward(self, x: Tensor) -> Any:
        out = self.second(self.relu(self.norm(self.first(x))))
        kept = self.same(out)
        kept += x
        return (out, kept) if self.several else F.relu(out)


class Awkward(nn.Module):
    """A network in which parts write over their inputs, share layers, and are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.counted = nn.Conv2d(3, 4, 3, padding=1), Counted(4, 4, 1)
        self.blocks = nn.ModuleList([Block(False), Block(True), Block(False)])
        self.twice, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.blocks[2].second = self.twice
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.counted(self.stem(x))
        x = self.norm(self.twice(self.blocks[0](x)))
        x, kept = self.blocks[1](x.relu_())
        x = self.twice(self.blocks[2](x + kept)) + x
        found: Tensor = self.head(x.mean((2, 3)))
        return found


@pytest.fixture
def awkward() -> nn.Module:
    model = Awkward()
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
        norm.running_mean = torch.randn(4) / 4
    return model.eval()


def forms_of(model: nn.Module, layer: str) -> list[dict[str, Weight]]:
    """A layer in two forms."""
    weight = weight_of(compressible(model)[layer])
    steps = [[Step(technique="rtn", knobs={"bits": bits})] for bits in (8, 2)]
    return [{layer: steps_on(layer, weight, own, None, weight)} for own in steps]


def changed(model: nn.Module, weights: dict[str, Weight]) -> nn.Module:
    found = twin(model)
    replace(found, weights, compressible(found), trainable=False)
    return found


@pytest.mark.parametrize("room", [0, 100_000, 2**28])
def test_distances_are_the_same_to_the_bit(awkward: nn.Module, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "ROOM", room)
    data = (torch.randn(300, 3, 6, 6), torch.zeros(300, dtype=torch.long))
    rod = Yardstick(awkward, (), (), (data, metric("accuracy")))
    assert len(rod.outputs) == 3
    for layer in compressible(awkward):
        forms = forms_of(awkward, layer)
        found = apart_by(awkward, [layer], [changed(awkward, form) for form in forms], rod)
        assert found == [rod.distance(changed(awkward, form)) for form in forms]
        assert found[1] > 0


def test_what_comes_before_is_run_once_for_all_forms(awkward: nn.Module) -> None:
    data = (torch.randn(200, 3, 6, 6), torch.zeros(200, dtype=torch.long))
    rod = Yardstick(awkward, (), (), (data, metric("accuracy")))
    for layer, times in (("head", 1), ("blocks.1.second", 1), ("stem", 2)):
        Counted.ran = 0
        apart_by(awkward, [layer], [changed(awkward, form) for form in forms_of(awkward, layer)], rod)
        assert Counted.ran == times * len(rod.outputs)


def test_of_layers_that_are_never_called_all_is_the_same(awkward: nn.Module) -> None:
    awkward.spare = nn.Linear(4, 4)
    data = (torch.randn(20, 3, 6, 6), torch.zeros(20, dtype=torch.long))
    rod = Yardstick(awkward, (), (), (data, metric("accuracy")))
    forms = [changed(awkward, form) for form in forms_of(awkward, "spare")]
    assert apart_by(awkward, ["spare"], forms, rod) == [0.0, 0.0]


def test_a_part_whose_output_a_hook_changes_is_run_again(awkward: nn.Module) -> None:
    awkward.get_submodule("counted").register_forward_hook(lambda part, given, output: 2 * output)
    data = (torch.randn(20, 3, 6, 6), torch.zeros(20, dtype=torch.long))
    rod = Yardstick(awkward, (), (), (data, metric("accuracy")))
    forms = forms_of(awkward, "head")
    found = apart_by(awkward, ["head"], [changed(awkward, form) for form in forms], rod)
    assert found == [rod.distance(changed(awkward, form)) for form in forms]
