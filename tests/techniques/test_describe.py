"""What is told of a technique, and what a wrong step is told."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from lissom.compress import match
from lissom.errors import RecipeError
from lissom.formats import Weight
from lissom.techniques import LAYER, TECHNIQUES
from lissom.techniques.contract import check
from lissom.techniques.describe import Paper, describe, papers
from lissom.types import Recipe, Step


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_technique_cites_its_paper_and_says_what_it_does(technique: str) -> None:
    told = describe(technique)
    assert ": " in told.title, "the first line is 'Name: what it does.'"
    assert told.title.endswith(".")
    assert told.papers, "cite the paper as 'Authors, Venue year, arXiv:number' in the file's docstring"
    for paper in told.papers:
        assert paper.authors
        assert 1950 < paper.year < 2100
        assert paper.venue or paper.arxiv
    assert json.loads(json.dumps(asdict(told)))["name"] == technique


def test_a_technique_of_ones_own_is_described_by_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec('def mine(w: Weight, /, *, bits: int = 4) -> Weight:\n    """What it does."""', {"Weight": Weight}, names)
    monkeypatch.setitem(LAYER, "mine", names["mine"])
    found = describe("mine")
    assert (found.title, found.grain, [knob.name for knob in found.knobs]) == ("What it does.", "layer", ["bits"])


def test_a_description_is_read_off_the_function() -> None:
    told = describe("gptq")
    assert (told.grain, told.statistics, told.reads_original) == ("layer", ("Gram",), False)
    assert str(told.knobs[0]) == "bits: int = 4"
    assert describe("residual").reads_original
    assert describe("tuned").grain == "block"
    assert "none" in next(knob.types for knob in describe("wanda").knobs if knob.name == "keep")


def cited(*words: object) -> Paper:
    authors, work, venue, year, arxiv = words
    return Paper(authors=authors, work=work, venue=venue, year=year, arxiv=arxiv)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "Frantar, Alistarh, ICML 2023, arXiv:2301.00774, eq. (7).",
            cited("Frantar, Alistarh", "", "ICML", 2023, "2301.00774"),
        ),
        (
            "Li, Zhang, Liu, TWN, 2016, arXiv:1605.04711, eq. (2)",
            cited("Li, Zhang, Liu", "TWN", "", 2016, "1605.04711"),
        ),
        (
            "as\nin Cheng et al., SignRound / AutoRound, Findings of\nEMNLP 2024, arXiv:2309.05516",
            cited("Cheng et al.", "SignRound / AutoRound", "Findings of EMNLP", 2024, "2309.05516"),
        ),
        ("Boyd and Vandenberghe, Cambridge 2004:", cited("Boyd, Vandenberghe", "", "Cambridge", 2004, None)),
        ("Since the work of 2016, nothing.", None),
        ("With W, the weights of 2016.", None),
        ("", None),
    ],
)
def test_citations_are_taken_apart(text: str, found: Paper | None) -> None:
    assert papers(text) == (() if found is None else (found,))


def test_a_paper_cited_twice_is_one() -> None:
    assert len(papers("Xu et al., ICLR 2024, arXiv:2402.11295. As Xu et al., ICLR 2024, arXiv:2402.11295 say.")) == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"technique": "gtpq"}, "did you mean 'gptq'"),
        ({"technique": "gptq", "simmetric": True}, "did you mean 'symmetric'"),
        ({"technique": "gptq", "bits": "4"}, "is no int; write 4, without quotes"),
        ({"technique": "gptq", "damp": "1e-2"}, "is no float; write 0.01, without quotes and without an exponent"),
        ({"technique": "gptq", "bits": "four"}, "is no int$"),
        ({"technique": "gptq", "bits": "4.5"}, "is no int$"),
        ({"technique": "gptq", "damp": "nan"}, "is no float$"),
    ],
)
def test_a_wrong_step_is_told_what_was_meant(step: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(Step.of(step))


def test_a_name_that_is_like_no_other_gets_no_advice() -> None:
    with pytest.raises(RecipeError, match="unknown technique") as told:
        check(Step(technique="zzz"))
    assert "you mean" not in str(told.value)


def test_a_wildcard_that_matches_nothing_lists_the_closest() -> None:
    names = [f"model.layers.{n}.mlp.{part}_proj" for n in range(3) for part in ("up", "down")]
    recipe = Recipe.of([{"layers": "model.layers.*.mlp.upproj", "technique": "rtn"}])
    with pytest.raises(RecipeError, match=r"and 2 more; the closest are model\.layers\.\*\.mlp\.up_proj and "):
        match(recipe, names)
    with pytest.raises(RecipeError, match=r"and 2 more$"):
        match(Recipe.of([{"layers": "zz", "technique": "rtn"}]), names)
