"""Couplings found in the graph: what belongs together, and that taking it away changes what it must and no more."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.compress.reshape import joints_of, proved, shortened, spoken, tensor_of
from lissom.errors import ModelError
from lissom.models.couplings import Axis, Joint, traced_joints
from lissom.models.resize import replace_tensors


class Residual(nn.Module):
    """Two blocks around one stream; the second is depthwise inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.inner, self.two = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1)
        self.up, self.each, self.down = (
            nn.Conv2d(8, 12, 1),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.Conv2d(12, 8, 1),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.two(F.relu(self.inner(self.one(x))))
        x = x + self.down(F.relu6(self.each(self.up(x))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenated features, a grouped convolution, and a flattened map before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.c = nn.Conv2d(10, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.head = nn.Linear(12 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.gelu(self.a(x))
        x = F.relu(self.c(torch.cat([a, F.silu(self.b(a))], 1)))
        return self.head(F.max_pool2d(self.grouped(x), 4).flatten(1))


class Attention(nn.Module):
    """Attention with grouped queries, heads split by view, and a gated layer behind a norm."""

    def __init__(self, explicit: bool = False, fixed: bool = False) -> None:
        super().__init__()
        self.table, self.explicit, self.fixed = nn.Embedding(20, 16), explicit, fixed
        self.q, self.k, self.v, self.o = nn.Linear(16, 24), nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(24, 16)
        self.norm = nn.LayerNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 10), nn.Linear(16, 10), nn.Linear(10, 16)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], x.shape[2] // 4 if not self.fixed else 6 * x.shape[2] // 24, 4).transpose(1, 2)

    def forward(self, index: Tensor) -> Tensor:
        x = self.table(index)
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        if self.explicit:
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            y = (q @ k.transpose(2, 3) / 2).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y = x + self.o(y.transpose(1, 2).flatten(2))
        z = self.norm(y)
        return y + self.down(F.silu(self.gate(z)) * self.up(z))


def told(joint: Joint) -> tuple[int, bool, set[str], set[str]]:
    return joint.units, joint.kind == "heads", set(joint.made_by), {r.weight.layer for r in joint.readers}


EXPECTED: list[tuple[Callable[[], nn.Module], Tensor, list[tuple[int, bool, set[str], set[str]]]]] = [
    (
        Residual,
        torch.randn(2, 3, 8, 8),
        [
            (8, False, {"stem", "norm", "two", "down"}, {"one", "up", "head"}),
            (6, False, {"one", "inner"}, {"two"}),
            (12, False, {"up", "each"}, {"down"}),
        ],
    ),
    (
        Dense,
        torch.randn(2, 3, 8, 8),
        [(4, False, {"a"}, {"b", "c"}), (6, False, {"b"}, {"c"}), (4, False, {"c", "grouped"}, {"head"})],
    ),
    (
        Attention,
        torch.randint(20, (2, 5)),
        [(3, True, {"q", "k", "v"}, {"o"}), (10, False, {"gate", "up"}, {"down"})],
    ),
    (
        lambda: Attention(explicit=True),
        torch.randint(20, (2, 5)),
        [(3, True, {"q", "k", "v"}, {"o"}), (10, False, {"gate", "up"}, {"down"})],
    ),
]


@pytest.mark.parametrize(("made", "x", "expected"), EXPECTED)
def test_what_belongs_together(
    made: Callable[[], nn.Module], x: Tensor, expected: list[tuple[int, bool, set[str], set[str]]]
) -> None:
    found = [told(joint) for joint in traced_joints(made().eval(), x)]
    if made is Dense:  # a group of the grouped convolution is read by neither of the layers around it alone
        assert found[:2] == expected[:2]
        assert (4, False, {"c", "grouped"}, {"head"}) in found
    else:
        assert found == expected


@pytest.mark.parametrize(("made", "x", "expected"), EXPECTED)
def test_taking_units_away_is_as_if_nobody_listened(
    made: Callable[[], nn.Module], x: Tensor, expected: list[tuple[int, bool, set[str], set[str]]]
) -> None:
    model = made().eval()
    joints = joints_of(model, x)
    assert [told(joint) for joint in joints] == expected
    for joint in joints:
        small = made().eval()
        small.load_state_dict(model.state_dict())
        alive = torch.arange(joint.units)[1::2]  # the first unit and others in between
        gone = torch.arange(joint.units)[::2]
        for r in joint.readers:
            deaf = tensor_of(small, r.weight.tensor).detach().clone()
            deaf[:, r.weight.places(gone)] = 0
            replace_tensors(small, {r.weight.tensor: deaf})
        with torch.no_grad():
            wanted = small(x)
            for axis in (*joint.makers, *(r.weight for r in joint.readers)):
                replace_tensors(small, {axis.tensor: shortened(axis, tensor_of(small, axis.tensor), alive)})
            torch.testing.assert_close(small(x), wanted)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


class Mixed(nn.Module):
    """What must stay: channels that are normalized over, padded, softmaxed, given out, or used by the code itself."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.one, self.two = way, nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("scale", torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.one(x)
        if self.way == "out":
            return self.two(y), y
        if self.way == "weight":
            return self.two(y) + self.one.weight.sum()
        return self.two(WAYS[self.way](y, self.scale))


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "": lambda y, w: y,
    "softmax": lambda y, w: y.softmax(-1),
    "norm": lambda y, w: F.layer_norm(y, (8,)),
    "norm of a group": lambda y, w: F.group_norm(y, 2),
    "matrix": lambda y, w: y @ w,
    "sort": lambda y, w: y.sort(-1).values,
    "number": lambda y, w: y.reshape(-1, 2, 4).flatten(1),
    "sum": lambda y, w: y + y.sum(-1, keepdim=True),
    "constant": lambda y, w: y * torch.arange(8.0),
}


@pytest.mark.parametrize("way", ["out", "weight", *(way for way in WAYS if way)])
def test_what_depends_on_all_channels_keeps_them(way: str) -> None:
    assert joints_of(Mixed(way).eval(), torch.randn(3, 6)) == []


def test_the_rest_of_a_chain_can_go() -> None:
    (joint,) = joints_of(Mixed("").eval(), torch.randn(3, 6))
    assert told(joint) == (8, False, {"one"}, {"two"})


def test_a_coupling_that_is_not_one_is_not_proved() -> None:
    model = Residual().eval()
    axis = Axis(tensor="one.weight", dim=0, units=torch.arange(6))
    (good,) = (joint for joint in joints_of(model, torch.randn(2, 3, 8, 8)) if joint.units == 6)
    wrong = Joint(units=6, makers=(axis,), readers=good.readers)  # the bias and the norm forgotten
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert not proved(model, wrong, torch.randn(2, 3, 8, 8))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert proved(model, good, torch.randn(2, 3, 8, 8))


def test_a_hard_coded_number_of_heads_is_found_out_by_running() -> None:
    model = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0).eval()
    found = [told(joint) for joint in joints_of(model, torch.randn(2, 5, 16))]
    assert found == [(24, False, {"linear1"}, {"linear2"})]


def test_a_module_that_cannot_be_traced_says_so() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(ModelError, match="Branching cannot be traced"):
        traced_joints(Branching(), torch.ones(2, 4))


def test_places_come_unit_by_unit() -> None:
    axis = Axis(tensor="a.weight", dim=0, units=torch.tensor([1, -1, 0, 1, 0]))
    assert axis.places(torch.tensor([0, 1])).tolist() == [2, 4, 0, 3]
    assert axis.rest().tolist() == [1]
    assert axis.kept(torch.tensor([1])).tolist() == [0, 1, 3]
    assert spoken(nn.Identity(), torch.ones(1))[0].item() == 1
