import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lissom.errors import ArtifactError
from lissom.report import Report, page, write_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Nesting(HTMLParser):
    """Raises where a tag is closed that is not the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_everything_is_on_the_page(report: Report) -> None:
    html = page(report)
    for text in ("digits", "24 November 2026", "PASS", "4.0× smaller, 2.0× as fast on cpu", "With 95 % confidence"):
        assert text in html
    for text in (
        "paired betting test",
        "technique: gptq",
        "412 more examples are needed",
        "two cores",
        "2.13.0",
        "9f86",
    ):
        assert text in html
    assert html.count("<svg") == 2


def test_tags_are_nested(report: Report) -> None:
    parser = Nesting()
    parser.feed(page(report))
    assert parser.open == []


def test_it_needs_nothing_else(report: Report) -> None:
    html = page(report)
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!#)', html)
    assert not re.search(r"url\((?!#)|@import", html)


def test_every_text_is_escaped(hostile: Report) -> None:
    html = page(hostile)
    assert "<script" not in html
    assert "{{ 7 * 7 }}" in html


def test_a_search_without_a_winner_says_so(report: Report) -> None:
    html = page(replace(report, chosen=None, certificate=None, recipe=None))
    assert "NOT CERTIFIED" in html
    assert "The original model stands." in html
    assert "The recipe" not in html


def test_it_is_written_whole(report: Report, tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", report)
    assert path.read_text(encoding="utf-8") == page(report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_nothing(report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ArtifactError, match=r"report: cannot write .*report\.html"):
        write_report(tmp_path / "report.html", report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_not_there_is_named(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write to .*absent"):
        write_report(tmp_path / "absent" / "report.html", report)
