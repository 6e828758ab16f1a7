"""Re-cutting a frontier: no data, no calibration, and the bytes that were asked for."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact import load, read_manifest
from lissom.artifact.journal import Journal
from lissom.engine.lower import lower
from lissom.errors import ArtifactError, DataError, RecipeError
from lissom.evaluate import certify_models, metric
from lissom.files import plain
from lissom.progress import Progress
from lissom.search import Result, module, optimize, recut
from lissom.search.bank import Bank
from lissom.search.forms import CACHE, ORIGINAL, SAFE
from lissom.search.recover import learned_key, learning
from lissom.search.recut import FRONTIER, of_size
from lissom.search.sensitivity import Option
from lissom.search.split import split
from lissom.types import Budget

NAME = f"{FRONTIER}cpu"


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
    assert found.drops["accuracy"] <= 0.05
    assert result.best is not None
    assert found.nbytes <= 1.05 * result.best.point.nbytes


def test_with_the_data_of_the_search_a_cut_is_certified_on_what_never_chose(
    result: Result, classifier: nn.Module, examples: tuple[Tensor, Tensor], work: Path, tmp_path: Path
) -> None:
    common: Any = {"model": classifier, "example": examples[0][:2], "data": examples}
    found = recut(work, tmp_path / "cut", size=5_000, **common)
    assert found.certificate is not None
    written = read_manifest(found.folder)["certificate"]
    assert written["max_drop"] == 0.02  # that of the search
    lots = split(examples, {metric("accuracy"): result.budget})
    budgets = {"accuracy": Budget(max_drop=0.02)}
    again = certify_models(classifier, lower(load(found.folder)), lots.certification, budgets, planned=lots.units)
    assert plain(again) == written == plain(found.certificate)
    assert found.verdict == again.verdict == read_manifest(found.folder)["recut"]["verdict"]
    other = recut(work, tmp_path / "strict", size=4_000, budget=Budget(max_drop=0.005), **common)
    assert read_manifest(other.folder)["certificate"]["max_drop"] == 0.005
    common["data"] = (examples[0].flip(0), examples[1].flip(0))
    with pytest.raises(ArtifactError, match="the data is not that with which"):
        recut(work, tmp_path / "other", size=5_000, **common)
    with pytest.raises(DataError, match="the search did not measure kl; give a budget in accuracy"):
        recut(work, tmp_path / "other", size=5_000, budget={"kl": Budget()}, **common)
    assert not (tmp_path / "other").exists()


def test_what_has_learned_is_taken_where_it_is_better(
    result: Result, classifier: nn.Module, examples: tuple[Tensor, Tensor], work: Path, tmp_path: Path
) -> None:
    shutil.copytree(work, copied := tmp_path / "bank")
    subject = module.ModuleSubject(classifier, examples[0][:2], torch.device("cpu"))

    def pretend(drop: float) -> dict[str, Any]:
        """Write down one that has learned in the search, and that its drop was this."""
        with closing(Journal(copied)) as journal:
            held, bank = journal.read(NAME), Bank(journal, subject.units, subject.forms)
            point = {**held["points"][0], "name": "learned", "kl": 0.125, "drops": {"accuracy": drop}}
            recipe = learning(bank.recipe(point["choice"], "learned"), metric("accuracy"))
            point |= {"recipe": recipe.as_dict()}
            key = learned_key(recipe, point["choice"])
            folder = bank.folder(key, {}, lambda new: subject.compress_into(new, recipe, examples, point["choice"]))
            journal.keep(NAME, {**held, "learned": [{**point, "nbytes": 100}]})  # less than can be put together
            return point | {"folder": folder, "nbytes": subject.reopened(folder, recipe).nbytes}

    common: Any = {"model": classifier, "example": examples[0][:2]}
    first = pretend(-1.0)
    by_size = recut(copied, tmp_path / "size", size=6_000, **common)
    alone = recut(copied, tmp_path / "alone", size=100, **common)
    by_budget = recut(copied, tmp_path / "budget", budget=Budget(max_drop=0.0), **common)
    for found in (by_size, alone, by_budget):
        assert (found.nbytes, found.kl) == (first["nbytes"], first["kl"])
        assert read_manifest(found.folder)["recut"]["measured"]
        assert torch.equal(load(found.folder)(examples[0]), load(first["folder"], model=classifier)(examples[0]))
    pretend(1.0)
    assert recut(copied, tmp_path / "other", size=6_000, **common).kl != first["kl"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"size": 5000, "budget": Budget()}, RecipeError, "both only with data"),
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


@pytest.mark.parametrize("form", [ORIGINAL, SAFE])
def test_the_cache_stays_as_the_search_held_it(form: str) -> None:
    """It has no bytes, so that no size would ever ask for fewer bits of it."""
    options = {
        "layer": {SAFE: Option(steps=(), nbytes=100, error=0.0, kl=0.1)},
        CACHE: {own: Option(steps=(), nbytes=0, error=0.0, kl=kl) for own, kl in ((ORIGINAL, 0.0), (SAFE, 0.1))},
    }
    held = {"cache": form, "beside": 10, "scale": {}}
    assert of_size(Mock(spec=Bank, options=options), held, 110) == {"layer": SAFE, CACHE: form}
    assert set(options[CACHE]) == {ORIGINAL, SAFE}
