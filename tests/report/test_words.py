import shlex
from dataclasses import replace
from typing import Any

import pytest

from lissom.estimate import Estimate, joint
from lissom.report import Report
from lissom.report.words import (
    drop,
    error,
    figure,
    headline,
    lost,
    meaning,
    number,
    percent,
    recut,
    sentence,
    size,
    times,
    together,
    told,
)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (12, "12.0 B"),
        (999, "999 B"),
        (8_034_000, "8.03 MB"),
        (999_600, "1.00 MB"),
        (2.5e12, "2,500 GB"),
        (-8_034_000, "−8.03 MB"),
    ],
)
def test_size(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


@pytest.mark.parametrize(("fraction", "text"), [(0.01, "1 %"), (0.0025, "0.25 %"), (-0.00001, "0 %"), (-0.1, "−10 %")])
def test_percent_says_no_more_than_it_must(fraction: float, text: str) -> None:
    assert percent(fraction) == text


def test_a_figure_carries_its_unit_and_its_interval() -> None:
    estimate = Estimate(value=33.87, low=33.1, high=34.6, n=240, unit="ms")
    assert figure(estimate) == ("33.87 ms", "33.10 to 34.60")
    assert figure(replace(estimate, unit=""))[0] == "33.87"
    assert figure(replace(estimate, value=12345.6))[0] == "12,346 ms"
    assert figure(estimate, 3) == ("33.9 ms", "33.1 to 34.6")


def test_a_share_is_shown_in_percent() -> None:
    assert figure(Estimate(value=0.915, low=0.896, high=0.931, n=1000)) == ("91.50 %", "89.60 to 93.10")


def test_a_drop_is_in_percent() -> None:
    assert drop(Estimate(value=0.0032, low=-0.0008, high=0.0072, n=9, unit="")) == ("0.32 %", "−0.08 to 0.72")


def test_times() -> None:
    assert times(8.0, 2.0) == "4.0×"
    assert times(8.0, 0) == "–"


def test_the_headline_compares_with_the_original(report: Report) -> None:
    assert headline(report) == "4.0× smaller, 2.0× as fast on cpu"


def test_the_headline_says_when_nothing_was_found(report: Report) -> None:
    assert headline(replace(report, chosen=None)) == "No candidate kept the budget. The original model stands."


@pytest.mark.parametrize(
    ("verdict", "n_more", "words"),
    [
        ("PASS", 0, "With 95 % confidence this model stays inside the budget, a drop of at most 1 % in quality"),
        ("FAIL", 0, "With 95 % confidence the best candidate breaks the budget"),
        ("NEED MORE", 412, "do not decide whether the best candidate keeps the budget"),
        ("NEED MORE", 412, "measured by accuracy. About 412 more would."),
        ("NEED MORE", None, "No attainable number would."),
    ],
)
def test_the_certificate_in_words(report: Report, verdict: Any, n_more: int | None, words: str) -> None:
    assert report.certificate is not None
    drop = replace(report.certificate.drop, value=0.004, low=-0.001, high=0.009)
    said = sentence(replace(report, certificate=replace(report.certificate, verdict=verdict, n_more=n_more, drop=drop)))
    assert words in said
    assert said.endswith("On them the drop is 0.40 % (between −0.10 and 0.90 %).")


def test_nothing_is_said_of_a_certificate_that_is_none(report: Report) -> None:
    assert sentence(replace(report, certificate=None)) == ""


def test_a_relative_budget_is_a_share_of_the_original(report: Report) -> None:
    assert report.certificate is not None
    certificate = replace(report.certificate, relative=True, max_drop=0.02, metric="agreement")
    said = sentence(replace(report, certificate=certificate))
    assert "at most 2 % of the original's own in quality, measured by agreement." in said


def test_several_budgets_are_all_named(several: Report) -> None:
    said = sentence(several)
    assert (
        "stays inside the budgets, drops in quality of at most 1 % by accuracy and 5 % of the original's own by" in said
    )
    assert said.endswith("examples that had no part in choosing it show it.")
    assert several.certificate is not None
    assert "truly breaks one of these budgets is passed with a chance of at most 5 %" in meaning(several.certificate)
    assert "Berger, Technometrics 1982" in meaning(several.certificate)
    parts = several.certificate.parts
    failed = joint({"accuracy": parts["accuracy"], "agreement": replace(parts["agreement"], verdict="FAIL")})
    said = sentence(replace(several, certificate=failed))
    assert "breaks the budget, a drop of at most 5 % of the original's own in quality, measured by agreement." in said
    assert said.endswith("On them the drop is 0.32 % (between −0.08 and 0.72 %).")


def test_what_a_certificate_promises(report: Report) -> None:
    assert report.certificate is not None
    said = meaning(replace(report.certificate, confidence=0.99, max_drop=0.005))
    assert "drops more than 0.5 % is passed with a chance of at most 1 %" in said


@pytest.mark.parametrize(
    ("value", "text"), [(0.00064, "0.000640"), (1.5, "1.50"), (12345.6, "12,346"), (1e-5, "1.00e−05"), (0.0, "0.00")]
)
def test_a_number(value: float, text: str) -> None:
    assert number(value) == text


def test_an_error_is_how_much_more_was_measured() -> None:
    assert error(2.0, 2.1) == "+5.0 %"
    assert error(2.0, 1.5) == "−25.0 %"
    assert error(0.0, 1.0) == "–"


def test_a_point_in_a_line(report: Report) -> None:
    assert told(report.points[1]) == "gptq 4 bits: 2.00 MB, 2.00 ms, drop 0.32 %, PASS"
    assert told(replace(report.points[1], verdict="")) == "gptq 4 bits: 2.00 MB, 2.00 ms, drop 0.32 %"


@pytest.mark.parametrize("folder", ["small", "small models/", "it's $HOME; rm"])
def test_the_command_that_cuts_anew_can_be_pasted(report: Report, folder: str) -> None:
    words = shlex.split(recut(folder, report.points[1]))
    assert words == ["lissom", "recut", folder, "--size", "2000000", "--out", f"{folder.rstrip('/')}-2000000"]


def test_the_fewest_layers_that_make_half_of_the_loss_are_named(report: Report) -> None:
    layers = [replace(report.layers[0], name=f"layer {i}", kl=kl) for i, kl in enumerate([1.0, 4.0, 2.0, 3.0])]
    assert lost(layers) == "2 of 4 layers carry 70 % of the foreseen loss: layer 1, layer 3."
    assert lost(layers[1:2] * 12).endswith(
        "6 of 12 layers carry 50 % of the foreseen loss: " + "layer 1, " * 4 + "and others."
    )
    assert lost([replace(layer, kl=0.0) for layer in layers]) == ""


def test_names_of_one_reason_stand_together() -> None:
    assert together([("a", "slow"), ("b", "large"), ("c", "slow")]) == [("a · c", "slow"), ("b", "large")]
