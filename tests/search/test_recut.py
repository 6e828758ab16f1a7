"""Re-cutting a frontier: no data, no calibration, and the bytes that were asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact import load, read_manifest
from lissom.errors import ArtifactError, RecipeError
from lissom.progress import Progress
from lissom.search import Result, optimize, recut
from lissom.search import subject as module
from lissom.types import Budget


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "bank"


@pytest.fixture(scope="module")
def result(classifier: nn.Module, examples: tuple[Tensor, Tensor], work: Path) -> Result:
    return optimize(classifier, examples, Budget(max_drop=0.02), prefer="size", work=work)


def test_a_size_is_kept_and_nothing_is_calibrated(
    result: Result,
    classifier: nn.Module,
    examples: tuple[Tensor, Tensor],
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*given: Any) -> None:
        raise AssertionError("it was calibrated")

    monkeypatch.setattr(module.ModuleSubject, "fill", never)
    monkeypatch.setattr(module, "compress_model", never)
    example = examples[0][:2]
    small, large = (
        recut(work, tmp_path / name, size=size, model=classifier, example=example)
        for name, size in (("small", 3_000), ("large", 6_000))
    )
    assert small.nbytes <= 3_000 < large.nbytes <= 6_000
    assert small.kl >= large.kl
    assert read_manifest(small.folder)["recut"]["kl"] == small.kl
    with torch.no_grad():
        right = (load(large.folder)(examples[0]).argmax(1) == examples[1]).float().mean()
    assert right > 0.95


def test_a_budget_picks_the_smallest_that_is_foreseen_to_keep_it(
    result: Result, classifier: nn.Module, examples: tuple[Tensor, Tensor], work: Path, tmp_path: Path
) -> None:
    found = recut(work, tmp_path / "cut", budget=Budget(max_drop=0.05), model=classifier, example=examples[0][:2])
    assert found.drop <= 0.05
    assert result.best is not None
    assert found.nbytes <= 1.05 * result.best.point.nbytes


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, RecipeError, "either a size or a budget"),
        ({"size": 10}, RecipeError, "10 bytes are too few; the smallest that can be built has"),
        ({"size": 5000, "model": None}, ArtifactError, "the search was of a module"),
        ({"size": 5000, "model": nn.Sequential(nn.Linear(32, 4))}, ArtifactError, "the model is not that"),
    ],
)
def test_what_cannot_be_cut_is_said(
    result: Result,
    classifier: nn.Module,
    examples: tuple[Tensor, Tensor],
    work: Path,
    tmp_path: Path,
    given: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        recut(work, tmp_path / "cut", **{"model": classifier, "example": examples[0][:2], **given})
    assert not (tmp_path / "cut").exists()


def test_a_folder_that_is_no_work_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no work of a search"):
        recut(tmp_path / "nowhere", tmp_path / "cut", size=5)


def test_the_same_search_again_uses_what_is_there(
    result: Result, classifier: nn.Module, examples: tuple[Tensor, Tensor], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even for another budget no layer is made anew."""
    told: list[Progress] = []
    again = optimize(classifier, examples, Budget(max_drop=0.02), prefer="size", work=work, progress=told.append)
    assert not any("compare" in str(event) for event in told)
    assert again.best is not None
    assert result.best is not None
    assert again.best.recipe == result.best.recipe
    other = torch.Generator().manual_seed(1)
    changed = (examples[0] + 1e-3 * torch.randn(examples[0].shape, generator=other), examples[1])
    with pytest.raises(ArtifactError, match="the data changed"):
        optimize(classifier, changed, Budget(max_drop=0.02), prefer="size", work=work)
