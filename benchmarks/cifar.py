"""ResNets for CIFAR-10: the network, its images, and some epochs of training. Needs torch and Pillow only.

He, Zhang, Ren, Sun, CVPR 2016, arXiv:1512.03385, section 4.2: three stages of 16, 32 and 64 channels, two 3x3
convolutions a block, and shortcuts without parameters: they skip every other pixel and pad new channels with zeros.

Shapes: n images, c channels, h and w pixels.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those that the weights were trained with
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


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


def trained(file: Path, blocks: int = 3) -> ResNet:
    """A ResNet with its published weights, a file of torch's own that is read as tensors only."""
    held = torch.load(file, weights_only=True, map_location="cpu")  # noqa: TID251, there is no other copy of them
    model = ResNet(blocks)
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


def photographs(archive: Path) -> tuple[Tensor, Tensor]:
    """The lossy images of an archive, as bytes [n, c, h, w], and their classes: for training only."""
    pixels, classes = [], []
    with tarfile.open(archive) as files:
        for member in files:
            held = files.extractfile(member) if member.name.endswith(".jpg") else None
            if held is not None:
                pixels.append(np.asarray(Image.open(io.BytesIO(held.read())).convert("RGB")))
                classes.append(CLASSES.index(Path(member.name).parent.name))
    return torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(classes)


def recover(
    model: nn.Module, archive: Path, exact: Tensor, *, epochs: int = 10, rate: float = 0.05, batch: int = 128
) -> None:
    """Train a model for some epochs, in place: SGD with momentum, the rate falling to 0 along a cosine.

    Convolutions are in bfloat16, which takes half of the time; the weights, and what is evaluated, are in float32.
    Images are moved by up to 4 pixels and mirrored, as He and others did. They are lossy, and the tested ones are not:
    at the end the batch normalisations take their means and variances from `exact` images [n, c, h, w].
    """
    pixels, classes = photographs(archive)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = epochs * (len(pixels) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(0)
    model.train().to(memory_format=torch.channels_last)
    for _ in range(epochs):
        for places in torch.randperm(len(pixels), generator=generator)[: steps // epochs * batch].split(batch):
            x = augmented(pixels[places], generator).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), classes[places])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    settle(model.to(memory_format=torch.contiguous_format), exact)


@torch.no_grad()
def settle(model: nn.Module, exact: Tensor, batch: int = 250) -> None:
    """Give the batch normalisations the means and variances of these images, all batches counting alike."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for lot in exact.split(batch):
        model(lot)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Images of bytes [n, c, h, w] as the network wants them, each moved and perhaps mirrored."""
    n, _, size, _ = pixels.shape
    wide = F.pad(pixels, (4, 4, 4, 4))
    down, right = (torch.randint(0, 9, (n,), generator=generator) for _ in range(2))
    rows = (down[:, None] + torch.arange(size))[:, None, :, None]
    mirrored = torch.rand(n, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], torch.arange(size - 1, -1, -1), torch.arange(size)) + right[:, None]
    found = wide[torch.arange(n)[:, None, None, None], torch.arange(3)[:, None, None], rows, columns[:, None, None, :]]
    return (found.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(SPREAD).view(3, 1, 1)


@torch.no_grad()
def multiplications(model: nn.Module) -> int:
    """Multiplications and additions of convolutions and linear layers for one image."""
    found: list[int] = []

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        found.append(layer.weight[0].numel() * out[0].numel())

    watched = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in watched]
    model(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return sum(found)
