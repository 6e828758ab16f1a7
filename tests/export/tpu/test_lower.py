"""Modules as functions of JAX, against the modules; on XLA's processor."""

import math
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissom.errors import ModelError
from lissom.export.tpu.lower import GONE, array_of, dtype_of, flat, jax_here, lowered, operators

pytestmark = pytest.mark.skipif(not (find_spec("jax") and find_spec("torchax")), reason="needs jax and torchax")


def run(model: nn.Module, **inputs: Any) -> list[Tensor]:
    low = lowered(model, inputs)
    return [torch.tensor(jax_here().device_get(one)) for one in jax_here().jit(low.function)(*low.arrays())]


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(F.max_pool2d(F.gelu(self.norm(self.convolution(x))), 2))
        return made


def test_a_module_says_what_it_says_in_pytorch() -> None:
    model, x = Image().eval(), torch.randn(2, 3, 16, 16)
    (said,) = run(model, x=x)
    assert torch.allclose(said, model(x), atol=1e-5)


@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.GRU(16, 8)])
def test_so_do_layers_with_attention_and_with_a_state(kind: nn.Module) -> None:
    x = torch.randn(2, 5, 16)
    kind = kind.eval()
    with torch.no_grad():
        expected = kind(x)
    said = run(kind, **{"src" if isinstance(kind, nn.TransformerEncoderLayer) else "input": x})
    assert torch.allclose(said[0], expected[0] if isinstance(expected, tuple) else expected, atol=1e-5)


class Attention(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k + 1, None if "is_causal" in self.how else mask, **self.how)


@pytest.mark.parametrize("how", [{}, {"is_causal": True}, {"scale": 0.5}, {"enable_gqa": True}])
@pytest.mark.parametrize("boolean", [True, False])
def test_attention(how: dict[str, Any], boolean: bool) -> None:
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2 if "enable_gqa" in how else 4, 6, 8)
    mask = torch.randn(5, 6) > 0 if boolean else torch.randn(5, 6)
    mask[1] = False if boolean else -math.inf  # a token that sees nothing
    (said,) = run(Attention(**how), q=q, k=k, mask=mask)
    expected = Attention(**how)(q, k, mask)
    seeing = torch.ones(5, dtype=torch.bool) if boolean or "is_causal" in how else mask.isfinite().all(1)
    assert torch.allclose(said[:, :, seeing], expected[:, :, seeing], atol=1e-5)


def test_whole_numbers_are_multiplied_as_such() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch._int_mm(x, y)

    x, y = torch.randint(-128, 128, (24, 64), dtype=torch.int8), torch.randint(-128, 128, (64, 16), dtype=torch.int8)
    (said,) = run(Product(), x=x, y=y)
    assert torch.equal(said.long(), x.long() @ y.long())


def test_four_bits_are_known_by_their_name() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8)
    assert str(array_of("a.int4", codes).dtype) == "int4"
    assert array_of("a.int4", codes).astype("int8").tolist() == codes.tolist()
    assert str(array_of("a.int8", codes).dtype) == "int8"
    assert str(dtype_of("tokens", torch.zeros(1, dtype=torch.long))) == "int32"
    assert array_of("x", torch.tensor([1.5]).bfloat16()).tolist() == [1.5]


def test_a_tensor_of_several_names_is_one_argument() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    low = lowered(model, {"input": torch.randn(2, 4)})
    assert len(low.tensors) == 1


def test_lists_are_named_part_by_part() -> None:
    a, b = torch.zeros(1), torch.ones(2)
    assert list(flat({"x": a, "cache": [a, b]})) == ["x", "cache.0", "cache.1"]


def test_pytorch_is_left_as_it_was() -> None:
    torch.backends.mha.set_fastpath_enabled(True)
    operators()
    assert torch.backends.mha.get_fastpath_enabled()
    assert not hasattr(torch, "jax")
    with torch.random.fork_rng():  # which asks what accelerator there is
        torch.manual_seed(0)
    for operator, name in GONE:
        packet = getattr(torch.ops.aten, operator)
        assert name in packet.overloads() or name not in vars(packet)


def test_what_cannot_be_lowered_is_said() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(3)

    with pytest.raises(ModelError, match="Asks cannot be lowered"):
        lowered(Asks(), {"x": torch.ones(3)})
    with pytest.raises(ModelError, match="no lowering is known for"):
        lowered(Draws(), {"x": torch.ones(3)})
