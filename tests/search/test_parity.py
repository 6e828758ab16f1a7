"""Parity: a folder that says what was certified passes, one that says something else does not."""

import copy
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from lissom.artifact import compress_checkpoint, open_folder, save
from lissom.calibrate import token_windows
from lissom.engine.lower import lower
from lissom.errors import ArtifactError
from lissom.search.parity import check_parity, last_logits, relative
from lissom.types import Recipe


def test_a_module_says_the_same_in_a_process_of_its_own(
    classifier: nn.Module, examples: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    folder = save(classifier, tmp_path / "saved", example=examples[0][:2])
    found = check_parity(folder, classifier, examples, False)
    assert found == {"examples": 16, "mean_difference": 0, "largest_difference": 0}
    other = copy.deepcopy(classifier)
    with torch.no_grad():
        next(other.parameters())[0] += 0.5
    with pytest.raises(ArtifactError, match=r"says something else than what was certified, by .*, at most"):
        check_parity(folder, other, examples, False)


def test_a_language_model_says_the_same_by_the_engine(demo_folder: Path, tmp_path: Path) -> None:
    text = (demo_folder / "stories.txt").read_text(encoding="utf-8")
    windows = token_windows(text, AutoTokenizer.from_pretrained(demo_folder), 24)[:16]
    recipe = Recipe.of([{"technique": "rtn", "bits": 4, "group": 32}])
    folder = compress_checkpoint(demo_folder, recipe, windows[:0], tmp_path / "small")
    found = check_parity(folder, lower(open_folder(folder).model), windows, True)
    assert found["examples"] == 16
    assert found["mean_difference"] <= found["largest_difference"] < 0.05
    with pytest.raises(ArtifactError, match="says something else"):
        check_parity(folder, open_folder(demo_folder).model, windows, True)


def test_a_folder_that_cannot_be_opened_is_named(demo_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_folder, tmp_path / "broken"))
    (folder / "model.safetensors").write_bytes(b"nothing")
    windows = torch.randint(100, (2, 8))
    with pytest.raises(ArtifactError, match=r"cannot be opened in a process of its own: .*model\.safetensors"):
        check_parity(folder, nn.Identity(), windows, True)


def test_of_all_tokens_only_the_last_logits_stay() -> None:
    """Those of the prompts before are gone when the next one is read."""
    held: list[weakref.ref[np.ndarray]] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(1))

        def forward(self, tokens: Tensor) -> Tensor:
            assert [one() for one in held] == [None] * len(held)
            logits = np.random.default_rng(0).random((1, tokens.shape[1], 5), dtype=np.float32)
            held.append(weakref.ref(logits))
            return torch.from_numpy(logits)

    assert last_logits(Model(), torch.zeros(3, 4, dtype=torch.long)).shape == (3, 5)
    assert len(held) == 3


def test_an_example_that_says_nearly_nothing_is_no_measure() -> None:
    """As two sentences do that have nothing in common, by their cosine."""
    said = torch.tensor([0.9, -0.8, 0.7, 0.0004])
    assert float(relative(said, said + 0.0005).max()) == pytest.approx(
        0.0005 / float(said.square().mean().sqrt()), rel=1e-3
    )
    wide = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))
    expected = (0.02 * wide).flatten(1).norm(dim=1) / wide.flatten(1).norm(dim=1).square().mean().sqrt()
    torch.testing.assert_close(relative(wide, 1.02 * wide), expected)
