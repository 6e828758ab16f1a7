"""Convolutions on panels: every kernel that runs here against the definition, and the definition against PyTorch."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lissom.engine.kernels import native
from lissom.engine.kernels.conv import PanelConv, conv_layer
from lissom.engine.kernels.panels import by_output
from lissom.engine.lower import lower
from lissom.errors import LissomError
from lissom.formats import Affine, Binary, CompressedConv, Dynamic, Palette, Ternary, Weight, wrap

last = torch.channels_last


def affine(o: int, i: int, bits: int, groups: int = 1, *, zeros: bool = False) -> Affine:
    zero = torch.randint(2**bits, (o, groups), dtype=torch.uint8) if zeros else None
    codes = torch.randint(2**bits, (o, i), dtype=torch.uint8)
    return Affine.of(codes, 0.01 + 0.1 * torch.rand(o, groups), zero, bits, None)


def palette(o: int, i: int, rows: int) -> Palette:
    return Palette.of(torch.randint(16, (o, i), dtype=torch.uint8), torch.randn(-(-o // rows), 16), rows, None)


FORMS: dict[str, Callable[[int, int, int], Weight]] = {  # outputs, channels, taps
    "int8": lambda o, c, t: affine(o, c * t, 8),
    "int8, zeros": lambda o, c, t: affine(o, c * t, 8, zeros=True),
    "int4, a group for each channel": lambda o, c, t: affine(o, c * t, 4, c),
    "int4, a group for each pair of channels": lambda o, c, t: affine(o, c * t, 4, c // 2 if c % 2 == 0 else c),
    "int3, groups that cut channels": lambda o, c, t: affine(o, c * t, 3, t, zeros=True),
    "palette, a book a row": lambda o, c, t: palette(o, c * t, 1),
    "palette, a book for 8 rows": lambda o, c, t: palette(o, c * t, 8),
    "dynamic": lambda o, c, t: Dynamic(affine=affine(o, c * t, 8, c), inputs=8),
    "binary": lambda o, c, t: Binary.of(torch.rand(o, c * t) < 0.5, 0.1 + torch.rand(o, 1), None),
    "ternary": lambda o, c, t: Ternary.of(torch.randint(3, (o, c * t), dtype=torch.uint8), torch.rand(o, 1), None),
}


def compressed(form: str, conv: nn.Conv2d) -> CompressedConv:
    outputs, channels, *size = conv.weight.shape
    wrapped = wrap(conv, FORMS[form](outputs, channels, math.prod(size))).requires_grad_(False)
    assert isinstance(wrapped, CompressedConv)
    return wrapped


def layer(form: str, *geometry: Any, **more: Any) -> PanelConv:
    made = conv_layer(compressed(form, nn.Conv2d(*geometry, **more)))
    assert made is not None
    return made


def near(found: Tensor, expected: Tensor) -> bool:
    """As exact as float32 sums are; an image's largest value tells how large the terms are."""
    return bool((found - expected).abs().max() <= 2e-5 * expected.abs().max() + 1e-6)


@pytest.mark.skipif(not native.kernels(), reason="no compiler when lissom was installed: there are no kernels in C")
@settings(max_examples=150)
@given(
    form=st.sampled_from(sorted(FORMS)),
    channels=st.integers(1, 40),
    outputs=st.integers(1, 70),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.sampled_from(["same", "valid"])),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    image=st.tuples(st.integers(1, 14), st.integers(1, 90)),
    images=st.integers(1, 3),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_every_kernel_computes_its_definition(
    form: str,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: Any,
    dilation: tuple[int, int],
    image: tuple[int, int],
    images: int,
    threads: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    stride = (1, 1) if padding == "same" else stride
    pads = (0, 0) if padding == "valid" else padding
    fits = padding == "same" or all(
        a + 2 * p > d * (k - 1) for a, p, k, d in zip(image, pads, size, dilation, strict=True)
    )
    assume(fits)
    made = layer(form, channels, outputs, size, stride, padding, dilation, bias=seed % 2 == 0)
    x = torch.randn(images, channels, *image) * torch.rand(images, 1, 1, 1).exp()
    expected = made.definition(x)
    torch.set_num_threads(threads)
    try:
        for kernel in native.kernels():
            assert near(made.run(x, kernel), expected), kernel
            assert near(made.run(x.to(memory_format=last), kernel), expected), kernel
    finally:
        torch.set_num_threads(1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": "valid", "bias": False},
        {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
        {"kernel_size": 3, "groups": 2, "padding": (2, 0)},
        {"kernel_size": 1, "stride": 3},
    ],
    ids=str,
)
def test_the_definition_is_nearly_the_layer_that_it_stands_for(form: str, geometry: dict[str, Any]) -> None:
    torch.manual_seed(0)
    before = compressed(form, nn.Conv2d(12, 64, **geometry))
    made = conv_layer(before)
    assert made is not None
    x = torch.randn(2, 12, 9, 11)
    found, expected = made.definition(x), before(x)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 0.02 * expected.norm()
    torch.testing.assert_close(made(x), found, rtol=1e-4, atol=1e-4)


def test_one_scale_for_what_a_block_of_rows_sees() -> None:
    """32 columns: two rows of outputs a block, that see four of the input."""
    torch.manual_seed(0)
    made = layer("int4, a group for each channel", 3, 8, 3, padding=1)
    x = torch.randn(1, 3, 6, 32)
    for first in (0, 2, 4):
        seen = x.clone()
        seen[:, :, : max(first - 1, 0)] = seen[:, :, first + 3 :] = 0
        a = seen.abs().max() / 127
        bias = by_output(made.panels.bias)[:8, 0]
        expected = nn.functional.conv2d((seen / a).round() * a, made.kernel(), bias, padding=1)
        torch.testing.assert_close(made(x)[:, :, first : first + 2], expected[:, :, first : first + 2])


def test_dynamic_inputs_have_one_scale_for_each_image() -> None:
    torch.manual_seed(0)
    before = compressed("dynamic", nn.Conv2d(5, 20, 3, padding=1))
    made = conv_layer(before)
    assert made is not None
    x = torch.randn(3, 5, 20, 20)
    torch.testing.assert_close(made(x), before(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", native.kernels())
def test_an_image_does_not_depend_on_the_others(kernel: str) -> None:
    torch.manual_seed(0)
    made = layer("int8", 16, 40, 3, padding=1)
    x = torch.randn(5, 16, 13, 13)
    together = made.run(x, kernel)
    assert torch.equal(torch.cat([made.run(part, kernel) for part in x.split(2)]), together)
    assert torch.equal(made.run(x.to(memory_format=last), kernel), together)
    x[1, 3, 4, 5] = float("nan")
    found = made.run(x, kernel)
    assert found[1].isnan().any()
    assert torch.equal(found[[0, 2, 3, 4]], together[[0, 2, 3, 4]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_answer_has_the_type_and_the_layout_of_the_question(dtype: torch.dtype) -> None:
    made = layer("int4, a group for each channel", 6, 9, 3)
    x = torch.randn(2, 6, 8, 8).to(dtype)
    assert made(x).is_contiguous()
    assert made(x.to(memory_format=last)).is_contiguous(memory_format=last)
    assert made(x).dtype == dtype
    assert torch.equal(made(x[1]), made(x)[1])
    assert torch.equal(made(x[:, :, :, ::2]), made(x[:, :, :, ::2].contiguous()))
    assert made(x[:0]).shape == (0, 9, 6, 6)


def test_moving_casting_and_copying_the_model_leaves_what_the_kernel_reads() -> None:
    made = layer("int4, a group for each channel", 6, 9, 3)
    x = torch.randn(2, 6, 8, 8)
    expected = made(x)
    assert torch.equal(copy.deepcopy(nn.Sequential(made).double())(x), expected)


def test_without_a_compiler_the_definition_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer("int4, a group for each channel", 6, 9, 3)
    x = torch.randn(2, 6, 8, 8)
    monkeypatch.setattr(native, "kernels", lambda: ())
    assert torch.equal(made(x), made.definition(x))


def test_what_does_not_fit_stays() -> None:
    for kind, geometry in (
        (nn.Conv2d, {"padding": 1, "padding_mode": "reflect"}),
        (nn.Conv2d, {"groups": 16}),
        (nn.Conv1d, {}),
    ):
        plain = kind(16, 16, 3, **geometry)  # type: ignore[operator]
        before = nn.Sequential(wrap(plain, affine(16, plain.weight[0].numel(), 4)))
        lowered: Any = lower(before.requires_grad_(False))
        assert type(lowered[0]) is CompressedConv
    unfit = wrap(nn.Conv2d(16, 16, 3), Dynamic(affine=affine(16, 144, 8), inputs=12))
    assert type(lower(nn.Sequential(unfit))[0]) is CompressedConv  # type: ignore[index]


def test_images_that_do_not_fit_are_refused() -> None:
    made = layer("int4, a group for each channel", 6, 9, 3)
    with pytest.raises(LissomError, match=r"of 6 channels on the CPU was given \(2, 5, 8, 8\) on cpu"):
        made(torch.randn(2, 5, 8, 8))
    with pytest.raises(LissomError, match="on meta"):
        made(torch.randn(2, 6, 8, 8, device="meta"))
    with pytest.raises(LissomError, match=r"images of \(2, 8\) are smaller than the patches \[3, 3\]"):
        made(torch.randn(2, 6, 2, 8))
