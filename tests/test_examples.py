"""The examples, run as a reader would; the demo is run by .ci/run, as `make demo`."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def run(root: Path, warm: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What an example prints, as it is called from the repository."""
    monkeypatch.chdir(root)

    def called(*words: object) -> str:
        done = warm.run(*words)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    return called


def first_of(source: Path, place: Path, count: int) -> Path:
    """A folder with the first images of Fashion-MNIST's files, and their labels."""
    for file in source.glob("*-ubyte*"):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        size = 16 + count * 28 * 28 if "images" in file.name else 8 + count
        (place / file.name.removesuffix(".gz")).write_bytes(content[:size])
    return place


def accuracies(printed: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"Accuracy of (.+) on test set: ([\d.]+)", printed)}


@pytest.mark.parametrize("options", [[], ["--cnn"]], ids=["linear", "convolutional"])
def test_the_article_on_digits(run: Callable[..., str], options: list[str]) -> None:
    found = accuracies(run("examples/article.py", *options))
    assert list(found) == ["model", "compressed model", *(f"quantized model ({b})" for b in ("8", "4", "binary"))]
    assert found["model"] > 0.93
    assert found["compressed model"] > 0.8  # not trained further
    assert all(value > found["model"] - 0.05 for name, value in found.items() if name.startswith("quantized"))


def test_the_article_on_fashion_mnist(run: Callable[..., str], shared: Path, tmp_path: Path) -> None:
    found = accuracies(run("examples/article.py", first_of(shared / "data" / "fashion_mnist", tmp_path, 20_000)))
    assert found["model"] > 0.84
    assert all(value > found["model"] - 0.05 for name, value in found.items() if name.startswith("quantized"))
