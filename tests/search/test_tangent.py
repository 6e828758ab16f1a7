"""What is foreseen by slopes is what is measured, for small changes and whatever a module makes of its parts."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.compress.layers import steps_on
from lissom.compress.norms import remembered
from lissom.evaluate import metric
from lissom.formats import Weight
from lissom.models import compressible, replace, weight_of
from lissom.models.apart import apart
from lissom.progress import Progress, quiet
from lissom.search import tangent
from lissom.search.fill import twin, with_forms, with_slopes
from lissom.search.tangent import Held, Tangent
from lissom.search.yardstick import Yardstick
from lissom.techniques.recover.norms import Norm
from lissom.types import Step


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
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList([Block(False), Block(True), Block(False)])
        self.twice, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.blocks[2].second = self.twice
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
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


def forms_of(model: nn.Module, layer: str, widths: tuple[int, int] = (8, 7)) -> list[dict[str, Weight]]:
    """A layer in two forms that are near to it."""
    weight = weight_of(compressible(model)[layer])
    steps = [[Step(technique="rtn", knobs={"bits": bits})] for bits in widths]
    return [{layer: steps_on(layer, weight, own, None, weight)} for own in steps]


def changed(model: nn.Module, weights: dict[str, Weight]) -> nn.Module:
    found = twin(model)
    replace(found, weights, compressible(found), trainable=False)
    return found


class Scalar(nn.Module):
    """What a module says, told by one number: its slopes then tell all there is to first order."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x).sum(-1, keepdim=True))


SQUARES = metric(lambda model, batch: torch.zeros(len(batch[0])))  # of what a module says, whatever it is


@pytest.mark.parametrize("room", [0, 2**30])
@pytest.mark.parametrize("lot", [1, 2**24])
def test_a_small_change_is_foreseen(awkward: nn.Module, room: int, lot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers called once or twice, before norms, inside and outside of blocks that write over what they made."""
    monkeypatch.setattr(tangent, "ROOM", room)
    monkeypatch.setattr(tangent, "LOT", lot)
    model = Scalar(awkward).double().eval()
    rod = Yardstick(model, (), (), ((torch.randn(40, 3, 6, 6).double(),), SQUARES))
    units = {layer: (layer,) for layer in compressible(model)}
    seen = []
    for unit, slopes in with_slopes(units, model, {}, rod, quiet):
        assert slopes is not None
        forms = [changed(model, form) for form in forms_of(model, unit)]
        for found, one in zip(slopes.distances([unit], forms), forms, strict=True):
            assert found == pytest.approx(rod.distance(one), rel=0.05)
        seen.append(unit)
    assert seen == list(units)


def test_layers_of_a_unit_move_together(awkward: nn.Module) -> None:
    model = Scalar(awkward).double().eval()
    rod = Yardstick(model, (), (), ((torch.randn(40, 3, 6, 6).double(),), SQUARES))
    own = ("inner.blocks.0.first", "inner.blocks.1.second")
    slopes = Tangent(model, {}, rod)
    slopes.look(own, 40)
    both = changed(model, forms_of(model, own[0])[1] | forms_of(model, own[1])[1])
    assert slopes.distances(own, [both])[0] == pytest.approx(rod.distance(both), rel=0.05)
    apart = [slopes.distances([one], [changed(model, forms_of(model, one)[1])])[0] for one in own]
    assert slopes.distances(own, [both])[0] != pytest.approx(sum(apart), rel=0.01)


def test_layers_inside_of_attention_are_foreseen() -> None:
    inner = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = apart(Scalar(nn.Sequential(nn.Linear(8, 16), inner, nn.Flatten(), nn.Linear(80, 3)))).double().eval()
    rod = Yardstick(model, (), (), ((torch.randn(30, 5, 8).double(),), SQUARES))
    units = {layer: (layer,) for layer in compressible(model)}
    assert len(units) == 8
    for unit, slopes in with_slopes(units, model, {}, rod, quiet):
        assert slopes is not None
        one = changed(model, forms_of(model, unit)[1])
        assert slopes.distances([unit], [one])[0] == pytest.approx(rod.distance(one), rel=0.05)


def test_of_logits_it_is_the_divergence(awkward: nn.Module) -> None:
    """Vectors are drawn: over many examples it comes out."""
    data = (torch.randn(600, 3, 6, 6), torch.zeros(600, dtype=torch.long))
    rod = Yardstick(awkward, (), (), (data, metric("accuracy")))
    for layer in ("head", "stem", "blocks.2.second"):
        slopes = Tangent(awkward, {}, rod)
        slopes.look([layer], slopes.n)
        forms = [changed(awkward, form) for form in forms_of(awkward, layer, (5, 4))]
        for found, one in zip(slopes.distances([layer], forms), forms, strict=True):
            assert found == pytest.approx(rod.distance(one), rel=0.3)


def test_a_norm_behind_a_layer_moves_with_it(awkward: nn.Module) -> None:
    model, layer = Scalar(awkward).double().eval(), "inner.blocks.0.first"
    rod = Yardstick(model, (), (), ((torch.randn(40, 3, 6, 6).double(),), SQUARES))
    weight = forms_of(model, layer)[1][layer]
    norm = remembered(model.get_submodule("inner.blocks.0.norm"))
    told = Norm(mean=norm.mean + 1e-3, variance=norm.variance * 1.001)
    slopes = Tangent(model, {layer: "inner.blocks.0.norm"}, rod)
    slopes.look([layer], 40)
    one = with_forms(model, {layer: (weight, told)}, slopes.norms)
    alone = with_forms(model, {layer: (weight, None)}, slopes.norms)
    found, without = slopes.distances([layer], [one, alone])
    assert found == pytest.approx(rod.distance(one), rel=0.05)
    assert without == pytest.approx(rod.distance(alone), rel=0.05)
    assert found != pytest.approx(without, rel=0.05)


def test_a_layer_that_is_never_called_moves_nothing(awkward: nn.Module) -> None:
    awkward.spare = nn.Linear(4, 4)
    data = (torch.randn(20, 3, 6, 6), torch.zeros(20, dtype=torch.long))
    slopes = Tangent(awkward, {}, Yardstick(awkward, (), (), (data, metric("accuracy"))))
    slopes.look(["spare"], 20)
    assert slopes.distances(["spare"], [changed(awkward, form) for form in forms_of(awkward, "spare")]) == [0.0, 0.0]


class Deaf(nn.Linear):
    """A layer without slopes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Crowded(nn.Module):
    """A module that compares the examples of a batch with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x - x.mean(0))


class Written(nn.Module):
    """A module that writes over what it has given to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + 1
        y = self.last(x)
        x.mul_(2)
        return y + self.last(x)


class Squeezed(nn.Linear):
    """A layer that takes a batch of one for none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


AWKWARD = (nn.Sequential(nn.Linear(4, 4), Deaf(4, 3)), nn.Sequential(nn.Linear(4, 4), Squeezed(4, 3)))


@pytest.mark.parametrize("model", [*AWKWARD, Crowded(), Written()], ids=str)
@pytest.mark.parametrize("frozen", [True, False])
def test_where_slopes_do_not_tell_there_are_none(model: nn.Module, frozen: bool) -> None:
    data = (torch.randn(20, 4), torch.zeros(20, dtype=torch.long))
    model.eval().requires_grad_(not frozen)
    rod = Yardstick(model, (), (), (data, metric("accuracy")))
    units = {layer: (layer,) for layer in compressible(model)}
    told: list[Progress] = []
    assert [slopes for _, slopes in with_slopes(units, model, {}, rod, told.append)] == [None] * len(units)
    assert [event.text.partition(" (")[0] for event in told] == ["no slopes, so every form is measured"]


def test_calls_of_one_shape_are_put_together() -> None:
    held = Held()
    for number, rows in enumerate((1, 1, 3, 2)):
        held.take(torch.full((rows, 2), float(number)), torch.ones(rows, 2), number)
    held.take(torch.zeros(1, 3), torch.ones(1, 3), 4)
    lots = list(held.lots())
    assert [given.shape for given, _, _ in lots] == [(7, 2), (1, 3)]
    assert lots[0][2].tolist() == [0, 1, 2, 2, 2, 3, 3]
    assert lots[1][2].tolist() == [4]
    assert held.nbytes == 2 * 4 * (14 + 3)
