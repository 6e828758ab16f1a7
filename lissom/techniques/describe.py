"""What there is to know of a technique without running it: its paper, what it must see, its knobs.

Everything is read off the function and the docstring of its file, whose first line says what it does and whose text
cites the papers as authors, perhaps the name of the work, venue, year and arXiv number.
"""

import re
import sys
from dataclasses import dataclass
from typing import Any

from lissom.formats import Weight
from lissom.techniques import TECHNIQUES
from lissom.techniques.contract import given, grain, knobs, needs

CITATION = re.compile(
    r"(?P<names>(?:[A-Z][\w'’-]+(?:, | and | et al\., ))+)"
    r"(?P<work>[^;.():]*?)"
    r"\b(?P<year>(?:19|20)\d\d)\b(?:, arXiv:(?P<arxiv>\d{4}\.\d{4,5}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """A citation; `work` is the name of the method where it is given, `venue` is empty for what is on arXiv alone."""

    authors: str
    work: str
    venue: str
    year: int
    arxiv: str | None

    def __str__(self) -> str:
        told = [self.authors, self.work, f"{self.venue} {self.year}".strip(), f"arXiv:{self.arxiv}" * bool(self.arxiv)]
        return ", ".join(part for part in told if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A keyword argument of the function, and so an entry of a recipe's step."""

    name: str
    types: tuple[str, ...]
    default: Any

    def __str__(self) -> str:
        return f"{self.name}: {' or '.join(self.types)} = {self.default!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A technique: how much it must see, what calibration must collect for it, and how it is set."""

    name: str
    grain: str
    title: str
    papers: tuple[Paper, ...]
    statistics: tuple[str, ...]
    reads_original: bool
    knobs: tuple[Knob, ...]


def describe(technique: str) -> Description:
    """What there is to know of a technique."""
    function = TECHNIQUES[technique]
    home = sys.modules.get(str(function.__module__))  # a technique of one's own may have none
    title, _, text = (getattr(home, "__doc__", None) or function.__doc__ or "").partition("\n")
    found = {
        name: (tuple("none" if t is type(None) else t.__name__ for t in types), default)
        for name, (types, default) in knobs(technique).items()
    }
    return Description(
        name=technique,
        grain=grain(technique),
        title=title,
        papers=papers(text),
        statistics=tuple(kind.__name__ for kind in needs(technique)),
        reads_original=Weight in given(technique)[1:],
        knobs=tuple(Knob(name=name, types=types, default=default) for name, (types, default) in found.items()),
    )


def papers(text: str) -> tuple[Paper, ...]:
    """The citations in a text, each paper once; one needs a venue or an arXiv number, a year alone is none."""
    found = (paper(match) for match in CITATION.finditer(" ".join(text.split())))
    return tuple(dict.fromkeys(one for one in found if one.venue or one.arxiv))


def paper(match: re.Match[str]) -> Paper:
    """A citation taken apart: the last of the words before the year is the venue, the one before it may name a work."""
    *words, venue = (match["names"] + match["work"]).replace(" and ", ", ").split(", ")
    named = len(words) > 1 and (" " in words[-1].removesuffix(" et al.") or sum(map(str.isupper, words[-1])) > 1)
    work = words.pop() if named else ""
    return Paper(
        authors=", ".join(words), work=work, venue=venue.strip(), year=int(match["year"]), arxiv=match["arxiv"]
    )
