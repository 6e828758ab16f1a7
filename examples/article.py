"""Compress and quantize a classifier, train it on, and see what it is worth.

python examples/article.py                   scikit-learn's digits
python examples/article.py FASHION_MNIST     a folder with Fashion-MNIST's four idx files (.gz or not)
python examples/article.py --cnn [FOLDER]    a small convolutional network instead of three linear layers
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import lissom


class MyModel(nn.Module):
    """Three linear layers."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, 256)
        self.second = nn.Linear(256, 128)
        self.third = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.first(images.flatten(1)))
        return self.third(torch.relu(self.second(x)))


class MyConvolutionalModel(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.third = nn.Linear(32 * pixels // 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.first(images)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.second(x)), 2)
        return self.third(x.flatten(1))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """The ordinary training loop."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images))
    train, test = order[:1297], order[1297:]
    return images[train], labels[train], images[test], labels[test]


def fashion_mnist(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def read(name: str, offset: int) -> Tensor:
        file = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=offset).copy())

    def images(name: str) -> Tensor:
        return read(name, 16).float().reshape(-1, 1, 28, 28) / 255

    def labels(name: str) -> Tensor:
        return read(name, 8).long()

    return (
        images("train-images-idx3-ubyte"),
        labels("train-labels-idx1-ubyte"),
        images("t10k-images-idx3-ubyte"),
        labels("t10k-labels-idx1-ubyte"),
    )


def main(arguments: list[str]) -> None:
    torch.manual_seed(0)
    kind = MyConvolutionalModel if "--cnn" in arguments else MyModel
    folders = [Path(argument) for argument in arguments if argument != "--cnn"]
    images, labels, test_images, test_labels = fashion_mnist(folders[0]) if folders else digits()
    epochs = 3 if folders else 30

    model = kind(images[0].numel())
    train(model, images, labels, epochs)
    print(f"Accuracy of model on test set: {accuracy(model, test_images, test_labels):.4f}")

    compressed = lissom.compress_model(model)
    print(f"Accuracy of compressed model on test set: {accuracy(compressed, test_images, test_labels):.4f}")

    for bits in (8, 4, "binary"):
        quantized = lissom.quantize_model(compressed, bits=bits)
        train(quantized, images, labels, epochs // 3)
        print(f"Accuracy of quantized model ({bits}) on test set: {accuracy(quantized, test_images, test_labels):.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
