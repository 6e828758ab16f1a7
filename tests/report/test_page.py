import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lissom.errors import ArtifactError
from lissom.report import Report, page, write_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Nesting(HTMLParser):
    """Raises where a tag is closed that is not the last one opened; remembers scripts, and what refers to what."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href"):
                self.links.add(str(value))

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(html: str) -> str:
    return unescape(re.sub("<[^>]*>", "", html))


def test_everything_is_on_the_page(report: Report) -> None:
    html = page(report)
    for text in ("digits", "24 November 2026", "PASS", "4.0× smaller, 2.0× as fast on cpu", "With 95 % confidence"):
        assert text in html
    for text in (
        "paired betting test",
        "technique: gptq",
        "412 more examples are needed",
        "its outputs overflow",
        "two cores",
        "2.13.0",
        "9f86",
        "Seed of every draw: 7.",
    ):
        assert text in html
    assert html.count("<svg") == 4


def test_every_candidate_has_a_card_with_its_figures_and_how_to_build_it(report: Report) -> None:
    cards = page(report).split("<article ")[1:]
    assert len(cards) == len(report.points)
    for text in ("first", "gptq 4 bits in all layers", "1.50 ms", "0.500 ms", "0.000640", "0.32 %", "−0.08 to 0.72"):
        assert text in cards[1]
    assert "lissom recut 'small models' --size 2000000 --out" in text_of(cards[1])
    assert "Why it was not chosen: 412 more examples are needed" in cards[2]
    assert "recut" not in cards[0]
    assert "lissom recut" not in text_of(page(replace(report, folder="")))


def test_what_was_predicted_stands_beside_what_was_measured(report: Report) -> None:
    table = page(report).split('aria-label="Predicted and measured"')[1].split("</table>")[0]
    row = next(row for row in table.split("<tr") if "gptq 4 bits" in row)
    for text in ("1.90 ms", "2.00 ms", "+5.3 %", "0.000704", "0.000640", "−9.1 %"):
        assert text in row


def test_layers_and_steps_say_where_the_accuracy_went(report: Report) -> None:
    html = page(report)
    assert "1 of 2 layers carries 75 % of the foreseen loss: down." in html
    layers = html.split('aria-label="Layers"')[1].split("</table>")[0]
    assert layers.index("8 bits") < layers.index("gptq 4 bits, group 128")
    for text in ("508 kB", "266 kB", "75 %", "25 %", "8.12", "0.00300"):
        assert text in layers
    steps = html.split("Step by step")[1].split("</table>")[0]
    assert [steps.count(">kept<"), steps.count(">undone<")] == [1, 2]
    for text in ("0.90×<small>0.88 to 0.92", "0.75×<small>0.73 to 0.77"):
        assert text in steps
    rejected = html.split("<h3>Steps</h3>")[1].split("</dl>")[0]
    assert "<dt>binary of down</dt><dd>not faster</dd>" in rejected
    assert "<dt>k-means of down</dt><dd>it was not seen to pay</dd>" in rejected


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_it_is_well_formed_whatever_the_number_of_points(report: Report, count: int) -> None:
    points = [replace(report.points[i % 5], name=f"point {i}") for i in range(count)]
    found = Nesting(page(replace(report, points=points, chosen="point 1")))
    assert found.open == []
    assert len(set(found.ids)) == len(found.ids)
    assert {f"#point-{i}" for i in range(count)} <= found.links <= {f"#{name}" for name in found.ids}


def test_it_needs_nothing_else(report: Report) -> None:
    html = page(report)
    assert not re.search(r"url\((?!#)|@import", html)
    assert set(re.findall(r'\S*https?://[^"]*"', html)) == {
        'xmlns="http://www.w3.org/2000/svg"',
        'xmlns:xlink="http://www.w3.org/1999/xlink"',
    }


def test_only_its_own_script_may_run(report: Report) -> None:
    html = page(report)
    (script,) = Nesting(html).scripts
    assert "default-src 'none'" in html
    assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in html


def test_every_text_is_escaped(hostile: Report) -> None:
    html = page(hostile)
    assert html.count("<script") == 1
    assert Nesting(html).open == []
    assert "{{ 7 * 7 }}" in html


def test_a_search_without_a_winner_says_so(report: Report) -> None:
    html = page(replace(report, chosen=None, certificate=None, recipe=None))
    assert "NOT CERTIFIED" in html
    assert "The original model stands." in html
    assert "The recipe" not in html
    assert "What that promises" not in html


def test_of_what_is_not_known_nothing_is_said(report: Report) -> None:
    points = [replace(point, predicted_latency_ms=None, predicted_kl=None, kl=None) for point in report.points]
    html = page(replace(report, points=points, layers=(), steps=(), command="", seed=None, failed={}))
    for text in ("Predicted and", "Where the accuracy", "Step by step", "To get the same", "Seed", "KL to", "Steps"):
        assert text not in html


def test_several_metrics_are_listed(report: Report) -> None:
    assert report.certificate is not None
    parts = {name: replace(report.certificate, metric=name) for name in ("accuracy", "agreement")}
    html = page(replace(report, certificate=replace(report.certificate, parts=parts)))
    assert html.count("<li>PASS: drop of ") == 2


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


def test_each_of_several_metrics_is_on_the_page(several: Report) -> None:
    html = page(several)
    Nesting(html)
    assert html.count("<dt>drop of agreement</dt>") == len(several.points) - 1
    assert html.count("<dt>agreement</dt>") == len(several.points)
    assert html.count('<th class="number">agreement</th>') == 1
    assert html.count("4.56 %") == 2
    assert text_of(html).count("PASS: drop of") == 2
    assert "Drops are of accuracy." in html


def test_what_was_not_measured_is_not_said_to_be(report: Report) -> None:
    refused = {"shared 4 bits": "palette would become 8 bits", "shared 3 bits": "palette would become 8 bits"}
    html = page(replace(report, target="tpu:v5e", how="costed by the data sheet", refused=refused))
    told = text_of(html)
    assert "2.0× as fast on tpu:v5e, costed by the data sheet" in told
    assert "latency was costed by the data sheet, not measured" in told
    assert "Latency was measured" not in told
    assert "Both were measured" not in told
    assert "Forms that tpu:v5e does not run as they are" in told
    assert "shared 4 bits · shared 3 bits" in told
    assert "Latency was measured on cpu" in text_of(page(report))
