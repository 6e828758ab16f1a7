from dataclasses import replace
from typing import Any

import pytest

from lissom.estimate import Estimate
from lissom.report import Report
from lissom.report.words import drop, figure, headline, percent, sentence, size, times


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(12, "12.0 B"), (999, "999 B"), (8_034_000, "8.03 MB"), (999_600, "1.00 MB"), (2.5e12, "2,500 GB")],
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
