"""ResNet-20 on CIFAR-10, trained by others, compressed as any module is.

He, Zhang, Ren, Sun, CVPR 2016, arXiv:1512.03385, section 4.2: three stages of 16, 32 and 64 channels, two 3x3
convolutions a block, and shortcuts without parameters: they skip every other pixel and pad new channels with zeros.

Shapes: n images, c channels, h and w pixels.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from table import Row, size_of
from torch import Tensor, nn

import lissom
from lissom.evaluate import paired

CALIBRATION = 512  # images
BATCH = 64
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those that the weights were trained with


class Block(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.widen = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Images of half the size where the stride is 2."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(short, (0, 0, 0, 0, self.widen // 2, self.widen // 2)))


class ResNet(nn.Module):
    """6 · blocks + 2 layers; 20 for blocks = 3."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, blocks, 1)
        self.layer2 = stage(16, 32, blocks, 2)
        self.layer3 = stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of ten classes."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one width, the first of which gets there."""
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def trained(file: Path) -> ResNet:
    """ResNet-20 with its published weights, a file of torch's own that is read as tensors only."""
    held = torch.load(file, weights_only=True, map_location="cpu")  # noqa: TID251, there is no other copy of them
    model = ResNet()
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in held["state_dict"].items()})
    return model.eval()


def images(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The lossless images and their classes: the first 1,000 of the test set, and some of the training set."""
    with np.load(file) as held:
        return {part: (normal(held[f"{part}_x"]), torch.tensor(held[f"{part}_y"]).long()) for part in ("train", "test")}


def normal(pixels: np.ndarray) -> Tensor:
    """Images [n, h, w, c] of bytes as the network wants them, [n, c, h, w]."""
    x = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(SPREAD).view(3, 1, 1)


def ways() -> dict[str, Callable[[nn.Module, Any], nn.Module]]:
    """What is tried."""

    def palette(rows: int) -> Callable[[nn.Module, Any], nn.Module]:
        step = lissom.Step(technique="kmeans", knobs={"bits": 4, "rows": rows})
        return lambda model, data: lissom.compress_model(model, data, steps=[step])

    return {
        "int8: `quantize_model(model, data)`": lambda model, data: lissom.quantize_model(model, data),
        "palette: kmeans, 4 bits, a codebook a row": palette(1),
        "palette: kmeans, 4 bits, a codebook a matrix": palette(0),
        "int4, gptq: `quantize_model(model, data, bits=4)`": lambda m, data: lissom.quantize_model(m, data, bits=4),
        "pruned, then a palette: `compress_model(model, data)`": lambda m, data: lissom.compress_model(m, data),
    }


def rows(shared: Path, place: Path) -> Iterator[Row]:
    """Every row of the table; the compressed models are saved, loaded again, and then evaluated."""
    original = trained(shared / "models" / "resnet_cifar10" / "resnet20-12fca82f.th")
    held = images(shared / "data" / "cifar10_lossless" / "cifar10_lossless.npz")
    calibration = list(held["train"][0][:CALIBRATION].split(BATCH))
    weights = sum(p.numel() for p in original.parameters())

    def row(name: str, model: nn.Module, folder: Path, seconds: float | None = None) -> Row:
        scores = paired(original, model, held["test"], "accuracy")
        return Row(name=name, scores=scores, nbytes=size_of(folder), weights=weights, seconds=seconds)

    first = place / "original"
    first.mkdir()
    save_file(original.state_dict(), first / "model.safetensors")
    yield row("original, float32", original, first)
    for number, (name, compress) in enumerate(ways().items()):
        start = time.process_time()
        model = compress(original, calibration)
        seconds = time.process_time() - start
        folder = lissom.save(model, place / str(number))
        yield row(name, lissom.load(folder, model=ResNet()), folder, seconds)
