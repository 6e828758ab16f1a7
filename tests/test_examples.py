"""The examples, run as a reader would; the demo is run by .ci/run, as `make demo`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def run(root: Path, *command: str) -> str:
    """What an example prints, as it is called from the repository."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(printed: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"Accuracy of (.+) on test set: ([\d.]+)", printed)}


@pytest.mark.parametrize("options", [[], ["--cnn"]], ids=["linear", "convolutional"])
def test_the_article_on_digits(root: Path, options: list[str]) -> None:
    found = accuracies(run(root, "examples/article.py", *options))
    assert list(found) == ["model", "compressed model", *(f"quantized model ({b})" for b in ("8", "4", "binary"))]
    assert found["model"] > 0.93
    assert found["compressed model"] > 0.8  # not trained further
    assert all(value > found["model"] - 0.05 for name, value in found.items() if name.startswith("quantized"))


def test_the_article_on_fashion_mnist(root: Path, shared: Path) -> None:
    found = accuracies(run(root, "examples/article.py", str(shared / "data" / "fashion_mnist")))
    assert found["model"] > 0.84
    assert all(value > found["model"] - 0.05 for name, value in found.items() if name.startswith("quantized"))
