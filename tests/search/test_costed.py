"""A search for targets that are not here: costs add up, forms that would become others are no choice, all is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.artifact import load, read_manifest
from lissom.artifact.journal import Journal
from lissom.compress.layers import look
from lissom.errors import ArtifactError, LissomError, ModelError
from lissom.evaluate import metric
from lissom.hardware import target_named
from lissom.progress import Progress, quiet
from lissom.search import Result, fill, module, optimize, recut
from lissom.search.bank import Bank
from lissom.search.costed import CostedSubject
from lissom.search.costs import AREA, LATENCY
from lissom.search.forms import ORIGINAL, SAFE
from lissom.search.joint import TIE, Problem
from lissom.search.language import LanguageSubject
from lissom.search.latency import Costed
from lissom.search.module import ModuleSubject
from lissom.types import Budget, Recipe

CPU = torch.device("cpu")
FPGA, TPU = "fpga:xc7z020clg400-1", "tpu:v5e"
PRUNED, SHARED = "half pruned, 8 bits", "shared 4 bits"
Examples = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def inner(classifier: nn.Module, examples: Examples) -> ModuleSubject:
    return ModuleSubject(classifier, examples[0][:64], CPU, rows=True)


@pytest.fixture(scope="module")
def bank(inner: ModuleSubject, examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Journal.open(tmp_path_factory.mktemp("bank") / "bank", {}) as journal:
        found = Bank(journal, inner.units, inner.forms)
        inner.fill(found, (examples[0][:64], examples[1][:64]), metric("accuracy"), None, quiet)
        yield found


def on(inner: ModuleSubject, target: str) -> CostedSubject:
    return CostedSubject(inner, target_named(target))


def test_a_choice_is_the_sum_of_its_layers_and_the_table_says_the_same(inner: ModuleSubject, bank: Bank) -> None:
    subject = on(inner, TPU)
    table = subject.latencies(bank)
    choice = dict(zip(bank.units, (PRUNED, ORIGINAL), strict=True))
    run = subject.run(bank, choice)
    assert isinstance(run, Costed)
    by_hand = sum(subject.of_layer(bank, unit, form)["call"] for unit, form in choice.items())
    assert run.parts == {"call": pytest.approx(by_hand)}
    assert table.of(subject.kinds, choice)["call"] == pytest.approx(by_hand)
    assert subject.assemble(bank, choice, "mixed").timed() == run
    whole = subject.timed()
    assert isinstance(whole, Costed)
    as_it_is = subject.run(bank, dict.fromkeys(bank.units, ORIGINAL))
    assert whole() == {"call": pytest.approx(as_it_is()["call"])}


def test_what_was_compressed_by_a_recipe_is_costed_by_its_weights(inner: ModuleSubject, examples: Examples) -> None:
    subject = on(inner, TPU)
    eight = Recipe.of({"name": "int8", "steps": [{"technique": "rtn", "bits": 8}]})
    trial = subject.compress(eight, examples[0][:64])
    assert trial.recipe.name == "int8, costed for tpu:v5e"
    assert 0 < trial.timed()()["call"] < subject.timed()()["call"]
    shared = Recipe.of({"name": "shared", "steps": [{"technique": "kmeans"}]})
    with pytest.raises(LissomError, match="0: palette would become 8 bits in groups of 32 on tpu:v5e"):
        subject.compress(shared, examples[0][:64])


def test_zeros_help_where_nothing_is_made_for_them_and_only_there(inner: ModuleSubject, bank: Bank) -> None:
    """Half of the weights gone: a circuit is smaller, a TPU multiplies as before."""
    costs: dict[str, list[dict[str, float]]] = {}
    for target, weights in ((TPU, {"latency": 1.0}), (FPGA, {AREA: 1.0})):
        subject = on(inner, target)
        problem = Problem.of(bank, subject.kinds, subject.latencies(bank), weights)
        problem = problem.without(subject.kinds, subject.refused(bank))
        costs[target] = [dict(zip(problem.forms[unit], problem.costs[unit], strict=True)) for unit in bank.units]
    for tpu, fpga in zip(costs[TPU], costs[FPGA], strict=True):
        assert tpu[PRUNED] == pytest.approx(tpu[SAFE], abs=TIE)  # bytes break ties
        assert fpga[PRUNED] < fpga[SAFE]
        assert SHARED not in tpu
        assert not {ORIGINAL, SHARED} & set(fpga)  # floats and shared values are no circuits
        assert {"4 bits a row", "binary", SAFE, PRUNED} <= set(fpga)
    assert "2 bits" in costs[FPGA][0]  # one group of 32 is a row there,
    assert "2 bits" not in costs[FPGA][1]  # and two are none


def test_the_table_of_a_circuit_has_its_time_and_its_area(inner: ModuleSubject, bank: Bank) -> None:
    table = on(inner, FPGA).latencies(bank)
    assert set(table.base) == {LATENCY, AREA}
    assert all(set(parts) == {LATENCY, AREA} for forms in table.added.values() for parts in forms.values())


def test_a_bound_model_is_told_before_anything_is_done(demo_folder: Path) -> None:
    subject = LanguageSubject(demo_folder, CPU)
    with pytest.raises(ModelError, match="this is a language model"):
        CostedSubject(subject, target_named(FPGA))
    costed = CostedSubject(subject, target_named("cuda:h100"))
    assert "keys and values" in subject.units
    assert "keys and values" not in costed.units
    original = costed.timed()
    assert set(original()) == {"prefill", "decode"}
    assert original()["decode"] > original()["prefill"] > 0
    wrong = ModuleSubject(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), torch.randn(4, 4), CPU)
    with pytest.raises(ModelError, match="Sigmoid; what can be built"):
        CostedSubject(wrong, target_named(FPGA))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work") / "bank"


@pytest.fixture(scope="module")
def calibrations() -> list[int]:
    """How many layers were looked at, time by time."""
    return []


@pytest.fixture(scope="module")
def results(classifier: nn.Module, examples: Examples, work: Path, calibrations: list[int]) -> dict[str, Result]:
    def counted(model: nn.Module, layers: Any, *given: Any) -> Any:
        calibrations.append(len(layers))
        return look(model, layers, *given)

    told: list[Progress] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "look", counted)
        budget = Budget(max_drop=0.02)
        found = optimize(classifier, examples, budget, target=(TPU, FPGA), work=work, progress=told.append)
    assert {event.text.partition(": ")[0] for event in told} == {TPU, FPGA}
    return found


def test_each_target_has_a_frontier_of_its_own_from_one_calibration(
    results: dict[str, Result], calibrations: list[int]
) -> None:
    assert list(results) == [TPU, FPGA]
    assert calibrations == [2]
    for target, result in results.items():
        assert (result.target, result.measured, result.verdict) == (target, False, "PASS")
        assert result.how.startswith("costed")
        assert result.best is not None
        assert not {row.form for row in result.layers} & {SHARED, "shared 3 bits"}
        assert all(row.note.startswith("costed, not measured") for row in result.steps)
        assert all(point.predicted_latency_ms is None for point in result.points)
    assert set(results[FPGA].points[0].parts) == {LATENCY, AREA}
    assert set(results[TPU].refused) == {SHARED, "shared 3 bits"}
    assert {ORIGINAL, "2 bits: * Linear 4x64"} <= set(results[FPGA].refused)


def test_each_is_cut_anew(
    results: dict[str, Result], classifier: nn.Module, examples: Examples, work: Path, tmp_path: Path
) -> None:
    common: Any = {"model": classifier, "example": examples[0][:2], "size": 5_000}
    with pytest.raises(ArtifactError, match="the search was for fpga:xc7z020clg400-1, tpu:v5e; name one as target"):
        recut(work, tmp_path / "cut", **common)
    with pytest.raises(ArtifactError, match="not for cpu"):
        recut(work, tmp_path / "cut", target="cpu", **common)
    found = recut(work, tmp_path / "cut", target=FPGA, **common)
    assert found.nbytes <= 5_000
    bits = [step["technique"] for step in read_manifest(found.folder)["recipe"]["steps"]]
    assert bits
    assert "kmeans" not in bits
    load(found.folder)


def test_the_same_search_goes_on_from_what_is_there(
    results: dict[str, Result],
    classifier: nn.Module,
    examples: Examples,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "compress_model", None)  # nothing learns anew
    again: list[Progress] = []
    found = optimize(classifier, examples, Budget(max_drop=0.02), target=[FPGA], work=work, progress=again.append)
    assert not any("compare" in str(event) for event in again)
    first, second = results[FPGA].best, found[FPGA].best
    assert first is not None
    assert second is not None
    assert first.recipe == second.recipe
