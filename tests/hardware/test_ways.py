"""The table of targets: each format has a way on each of them, and the first that fits is it."""

import json

import pytest

from lissom.formats import FORMATS
from lissom.hardware.ways import KINDS, Way, as_dict, way_of


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_has_a_way_on_every_target(kind):
    for name in FORMATS:
        way = way_of(kind, {"format": name})
        assert bool(way.kernel) != bool(way.becomes)
    told = json.loads(json.dumps(as_dict(KINDS[kind])))
    assert {name for way in told["ways"] for name in way["formats"]} == set(FORMATS)


def test_a_kernel_for_some_bits_is_a_line_before_the_others(monkeypatch):
    four = Way(formats=("affine",), bits=(4,), kernel="a kernel")
    kind = KINDS["cuda"]
    monkeypatch.setattr("lissom.hardware.ways.KINDS", {"cuda": type(kind)(name="cuda", ways=(four, *kind.ways))})
    assert way_of("cuda", {"format": "affine", "bits": 4}) is four
    assert four.whose == "affine of 4 bits"
    assert way_of("cuda", {"format": "affine", "bits": 3}) is not four


def test_words():
    assert Way(formats=("x",), kernel="panels").told == "panels"
    assert Way(formats=("x",), becomes="8 bits").told == "becomes 8 bits"
