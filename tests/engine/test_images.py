"""Convolutional networks as programs: every kernel against the definitions of the layers, one by one in PyTorch."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lissom.artifact.folder import open_folder
from lissom.artifact.module import save
from lissom.compress import compress_model
from lissom.engine.images import Images, NativeImages
from lissom.engine.kernels import native
from lissom.engine.lower import lower
from lissom.formats import freeze

pytestmark = pytest.mark.skipif(
    not native.kernels(), reason="no compiler when lissom was installed: there are no programs in C"
)
INT8 = [{"technique": "rtn", "bits": 8}]
STEPS: dict[str, list[dict[str, Any]]] = {
    "int8": INT8,
    "int4": [{"technique": "rtn", "bits": 4}],
    "int4, zeros": [{"technique": "rtn", "bits": 4, "symmetric": False}],
    "codebook": [{"technique": "kmeans", "bits": 4}],
    "ternary": [{"technique": "ternary"}],
    "integer inputs": [*INT8, {"technique": "dynamic"}],
}


def conv(inputs: int, outputs: int, size: int = 3, **more: Any) -> nn.Sequential:
    """A convolution and its norm."""
    more.setdefault("padding", size // 2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, bias=False, **more), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two convolutions beside a shortcut: with a convolution in it, or by skipping pixels and padding channels."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, plain: bool) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, stride=stride), conv(outputs, outputs)
        self.short = None if plain else conv(inputs, outputs, 1, stride=stride)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        if self.short is not None:
            return F.relu(y + self.short(x))
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2)))


class Inverted(nn.Module):
    """Wider inside, where each channel has a convolution of its own."""

    def __init__(self, width: int, gate: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(*conv(width, 3 * width, 1), gate, *conv(3 * width, 3 * width, stride=stride, groups=3 * width), gate),
            *conv(3 * width, width, 1),
        )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y + x if self.stride == 1 else y


class Dense(nn.Module):
    """What went in is kept beside what is made of it; the norm comes first."""

    def __init__(self, width: int, grown: int) -> None:
        super().__init__()
        self.norm, self.make = nn.BatchNorm2d(width), nn.Conv2d(width, grown, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.make(torch.relu(self.norm(x)))], 1)


class Late(nn.Module):
    """A sum that one of its terms is only made for later, and one of a thing with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 20), conv(3, 20, 1), conv(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = self.c(F.relu(a) + torch.relu(b + b))
        return (y + y).mean((2, 3))


def head(width: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)


NETS: dict[str, Any] = {
    "residual": lambda: nn.Sequential(
        conv(3, 16), nn.ReLU(), Residual(16, 16, 1, plain=True), Residual(16, 36, 2, plain=True), *head(36)
    ),
    "residual, convolved": lambda: nn.Sequential(
        conv(3, 24, 5, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        Residual(24, 70, 2, plain=False),
        *head(70),
    ),
    "each channel apart, ReLU6": lambda: nn.Sequential(
        conv(3, 10, stride=2), nn.ReLU6(), Inverted(10, nn.ReLU6()), Inverted(10, nn.ReLU6(), 2), *head(10)
    ),
    "each channel apart, hard swish": lambda: nn.Sequential(
        conv(3, 16), nn.Hardswish(), Inverted(16, nn.Hardswish()), *head(16)
    ),
    "each channel apart, SiLU": lambda: nn.Sequential(conv(3, 17), nn.SiLU(), Inverted(17, nn.SiLU()), *head(17)),
    "grown": lambda: nn.Sequential(
        conv(3, 12), nn.GELU(), Dense(12, 5), Dense(17, 8), nn.AvgPool2d(2, 2, 1), nn.Conv2d(25, 9, 1), *head(9)
    ),
    "groups": lambda: nn.Sequential(
        conv(3, 64),
        nn.ReLU(),
        conv(64, 128, groups=2),
        nn.ReLU(),
        conv(128, 64, groups=16, dilation=2, padding=2),
        *head(64),
    ),
    "windows": lambda: nn.Sequential(
        conv(3, 8),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        conv(8, 8),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
    ),
    "late": Late,
}


def lowered(net: nn.Module, steps: list[dict[str, Any]]) -> Any:
    """The network on kernels; its norms have seen something."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value in part.state_dict().values():
                if value.is_floating_point():
                    value.copy_(0.5 + torch.rand(value.shape))
    return lower(freeze(compress_model(net.eval(), steps=steps)).eval())


def images(made: Any) -> list[Images]:
    return [part for part in made.traced.modules() if isinstance(part, Images)]


def by_layers(made: NativeImages, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the definitions of the layers give, one by one in PyTorch."""
    with monkeypatch.context() as patch:
        patch.setattr(native, "kernels", lambda: ())
        y: Tensor = made.model(x)
    return y


def near(found: Tensor, expected: Tensor) -> bool:
    """Beside sums in another order, a few inputs that were almost between two integers.

    One of them moves some outputs by a hundredth of the largest, which in a small image is more than a share of all.
    """
    most = 2e-3 * expected.norm() + 2e-2 * expected.abs().amax() + 1e-6
    return found.shape == expected.shape and bool((found - expected).norm() <= most)


@pytest.mark.parametrize("name", NETS)
def test_a_program_computes_what_the_layers_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made = lowered(NETS[name](), INT8)
    assert isinstance(made, NativeImages)
    (part,) = images(made)
    for size, threads in (((3, 3, 21, 18), 2), ((1, 3, 9, 33), 3)):
        x = torch.randn(size)
        expected = by_layers(made, x, monkeypatch)
        torch.set_num_threads(threads)
        try:
            for kernel in native.kernels():
                part._kernel = kernel
                assert near(made(x), expected), kernel
            assert near(made(x.to(memory_format=torch.channels_last)), expected)
        finally:
            torch.set_num_threads(1)
    assert all(plan is not None for plan in part._plans.values())


@pytest.mark.parametrize("form", STEPS)
def test_every_format_runs(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made = lowered(NETS["residual, convolved"](), STEPS[form])
    x = torch.randn(2, 3, 40, 30)
    assert near(made(x), by_layers(made, x, monkeypatch))
    assert [len(part._plans) for part in images(made)] == [1]
    assert all(plan is not None for part in images(made) for plan in part._plans.values())


@settings(max_examples=40)
@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    image=st.tuples(st.integers(1, 14), st.integers(1, 90)),
    dense=st.booleans(),
    bits=st.sampled_from([8, 7, 6, 5, 4, 2]),
    gate=st.sampled_from([nn.Identity, nn.ReLU, nn.ReLU6]),
    seed=st.integers(0, 2**32),
)
def test_convolutions_of_any_form(
    channels: tuple[int, int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    image: tuple[int, int],
    dense: bool,
    bits: int,
    gate: type[nn.Module],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    fits = all(a + 2 * p > d * (k - 1) for a, p, k, d in zip(image, padding, size, dilation, strict=True))
    assume(fits)
    last = nn.Conv2d(channels[1], channels[2], size, stride, padding, dilation, bias=seed % 2 == 0)
    net = nn.Sequential(nn.Conv2d(channels[0], channels[1], 1), gate(), last, nn.Conv2d(channels[2], 3, 1))
    steps = [{"layers": "[03]" if dense else "*", "technique": "rtn", "bits": bits}]
    made = lowered(net, steps)
    x = torch.randn(2, channels[0], *image) * torch.rand(2, 1, 1, 1).exp()
    with pytest.MonkeyPatch.context() as monkeypatch:
        expected = by_layers(made, x, monkeypatch)
        for kernel in native.kernels():
            (part,) = images(made)
            part._kernel = kernel
            assert near(made(x), expected), kernel
            assert all(plan is not None for plan in part._plans.values())


@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("gate", [nn.Identity, nn.ReLU])
def test_the_largest_of_all_products_are_summed_exactly(bits: int, gate: type[nn.Module]) -> None:
    """All weights as large as they get, and all inputs, of either sign: where a sum is short of bits, it is here."""
    net = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), gate(), nn.Conv2d(16, 32, 9, bias=False), nn.Conv2d(32, 8, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(16)[:, :, None, None])
        net[2].weight.copy_(torch.where(torch.arange(32) % 2 == 0, -1.0, 1.0)[:, None, None, None].expand(32, 16, 9, 9))
    made = lowered(net, [{"technique": "rtn", "bits": bits, "group": 0}])
    for x in (torch.ones(1, 16, 12, 12), -torch.ones(1, 16, 12, 12)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            expected = by_layers(made, x, monkeypatch)
        for kernel in native.kernels():
            images(made)[0]._kernel = kernel
            torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)


def test_layers_that_only_add_and_cut_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    made = lowered(NETS["residual"]()[:4], INT8)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(made(x), made.model(x))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_image_does_not_depend_on_the_others(threads: int) -> None:
    torch.manual_seed(0)
    made = lowered(NETS["residual"](), INT8)
    x = torch.randn(5, 3, 20, 20)
    torch.set_num_threads(threads)
    try:
        together = made(x)
        assert torch.equal(torch.cat([made(part) for part in x.split(2)]), together)
        x[1, 2, 3, 4] = float("nan")
        found = made(x)
    finally:
        torch.set_num_threads(1)
    assert found[1].isnan().any()
    assert torch.equal(found[[0, 2, 3, 4]], together[[0, 2, 3, 4]])
    assert made(x[:0]).shape == (0, 5)


def test_what_is_unknown_runs_between_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.behind = (
                nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8)),
                nn.Sequential(conv(8, 8), conv(8, 4)),
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.before(x)
            return y, self.behind(y.softmax(1))

    torch.manual_seed(0)
    made = lowered(Between(), INT8)
    assert len(images(made)) == 2
    x = torch.randn(2, 3, 12, 12)
    for found, expected in zip(made(x), by_layers(made, x, monkeypatch), strict=True):
        assert near(found, expected)


def test_what_works_in_place_on_what_is_read_again_stays_outside() -> None:
    class Reread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x))
            z = F.relu(y, inplace=True)
            return self.c(y) + z

    torch.manual_seed(0)
    made = lowered(Reread(), INT8)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(made(x), made.model(x))


def test_a_module_that_cannot_be_traced_has_programs_inside() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.alone = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8)), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return self.alone(y) if y.sum() > 1e9 else y

    made = lowered(Branching(), INT8)
    assert type(made) is Branching
    assert type(made.body) is NativeImages


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_images_of_16_bits_are_computed_with_in_32(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    net = NETS["residual"]()
    x = torch.randn(2, 3, 16, 16).to(kind)
    made = lowered(net.to(kind), INT8)
    found = made(x)
    assert found.dtype == kind
    (part,) = images(made)
    assert all(plan is not None for plan in part._plans.values())
    assert len(part._plans) == 1
    torch.testing.assert_close(found, made.model(x), rtol=0.05, atol=0.05)  # layer by layer, rounded between them


def test_one_that_learns_and_other_inputs_go_through_pytorch() -> None:
    torch.manual_seed(0)
    made = lowered(NETS["residual"](), INT8)
    x = torch.randn(2, 3, 16, 16)
    wide = made(x.double())
    assert wide.dtype == torch.float64
    assert not images(made)[0]._plans
    assert near(wide.float(), made(x))
    made.train()
    assert made.traced.training
    assert near(made(x), made.model(x))


@pytest.mark.parametrize("name", NETS)
def test_a_served_graph_runs_as_a_program_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its norms stand alone, as operators: they become part of the convolutions."""
    torch.manual_seed(0)
    net = freeze(compress_model(NETS[name]().eval(), steps=INT8)).eval()
    x = torch.randn(2, 3, 19, 22)
    served: Any = lower(open_folder(save(net, tmp_path / "saved", example=x)).model)
    assert type(served) is NativeImages
    assert near(served(x), by_layers(served, x, monkeypatch))
    (part,) = images(served)
    assert all(plan is not None for plan in part._plans.values())
    assert not any(
        isinstance(node.target, torch._ops.OpOverload) and "norm" in str(node.target)
        for node in served.traced.graph.nodes
    )


def test_copies_run_and_attributes_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    made = lowered(NETS["residual"](), INT8)
    x = torch.randn(2, 3, 16, 16)
    expected = made(x)
    assert torch.equal(copy.deepcopy(made)(x), expected)
    with pytest.raises(AttributeError):
        _ = made.nothing
