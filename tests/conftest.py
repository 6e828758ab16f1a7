"""What every test may ask for: one thread, the repository, the bundled language model, the real data beside it.

The thread count is set before torch is imported, and lissom is imported inside the fixtures only: pytest puts shape
checks on the package when it is first imported.
"""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the workers of pytest-xdist use the cores
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network fails
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The bundled tiny Llama: 4 layers, hidden 256, vocabulary 2048."""
    return ROOT / "lissom" / "demo"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and models: the folder that LISSOM_SHARED names, or `shared` beside the repository."""
    folder = Path(os.environ.get("LISSOM_SHARED", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"needs the shared models and data; set LISSOM_SHARED ({folder} has none)")
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers, in whatever order it runs."""
    torch.manual_seed(0)
