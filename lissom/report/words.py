"""Numbers and verdicts, as a reader wants them."""

import shlex
from collections.abc import Sequence

from lissom.estimate import Certificate, Estimate
from lissom.report.content import LayerRow, Point, Report

NONE = "\N{EN DASH}"


def size(nbytes: float) -> str:
    """Bytes to three digits, in decimal units: 8.03 MB."""
    for unit in ("B", "kB", "MB"):
        if abs(nbytes) < 999.5:
            return f"{_digits(nbytes, 3)} {unit}"
        nbytes /= 1000
    return f"{_digits(nbytes, 3)} GB"


def percent(fraction: float) -> str:
    """A fraction as a percentage that says no more than it must: 1 %, 0.25 %."""
    return f"{_signed(f'{100 * fraction:.2f}'.rstrip('0').rstrip('.'))} %"


def drop(estimate: Estimate) -> tuple[str, str]:
    """A drop and its interval, in percent to two places, so that they align."""
    value, low, high = (_signed(f"{100 * part:.2f}") for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} %", f"{low} to {high}"


def figure(estimate: Estimate, digits: int = 4) -> tuple[str, str]:
    """A figure and its interval, in its own unit; without a unit and inside 0 to 1 it is a share, shown in percent."""
    share = not estimate.unit and estimate.low >= 0 and estimate.high <= 1
    scale, unit = (100, "%") if share else (1, estimate.unit)
    value, low, high = (_digits(scale * part, digits) for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} {unit}".rstrip(), f"{low} to {high}"


def times(original: float, now: float) -> str:
    """How many times smaller or faster: 3.9×."""
    return f"{original / now:.1f}×" if now else NONE


def number(value: float) -> str:
    """A number without a unit, to three digits."""
    return _digits(value, 3)


def error(predicted: float, measured: float) -> str:
    """How far a measurement is from what was predicted, in percent of that: +4.8 %."""
    return f"{_signed(f'{100 * (measured / predicted - 1):+.1f}')} %" if predicted else NONE


def told(point: Point) -> str:
    """A point in a line: its name, size, latency, drop and verdict."""
    return ", ".join(
        [
            f"{point.name}: {size(point.nbytes)}",
            figure(point.latency, 3)[0],
            f"drop {drop(point.drop)[0]}",
            *([point.verdict] if point.verdict else []),
        ]
    )


def recut(folder: str, point: Point) -> str:
    """The command that builds a point of the frontier again, without calibrating."""
    out = f"{folder.rstrip('/')}-{point.nbytes}"
    return f"lissom recut {shlex.quote(folder)} --size {point.nbytes} --out {shlex.quote(out)}"


def together(reasons: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names and reasons, those of one reason together."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons:
        found.setdefault(reason, []).append(name)
    return [(" · ".join(names), reason) for reason, names in found.items()]


def lost(layers: Sequence[LayerRow]) -> str:
    """Which layers the foreseen loss comes from: as few as make half of it; empty where none is foreseen."""
    total = sum(layer.kl for layer in layers)
    if total <= 0:
        return ""
    most, part = [], 0.0
    for layer in sorted(layers, key=lambda layer: -layer.kl):
        most.append(layer.name)
        part += layer.kl
        if part >= total / 2:
            break
    carry = "carries" if len(most) == 1 else "carry"
    names = ", ".join(most[:4]) + (", and others" if len(most) > 4 else "")
    share = percent(round(part / total, 2))
    return f"{len(most)} of {len(layers)} layers {carry} {share} of the foreseen loss: {names}."


def _digits(value: float, count: int) -> str:
    """A number to so many digits; to more where its integer part has more."""
    large = abs(value) >= 10**count - 0.5
    return _signed(f"{value:,.0f}" if large else f"{value:#.{count}g}".rstrip("."))


def _signed(text: str) -> str:
    """A true minus sign, and none before a zero."""
    return text.removeprefix("-") if not text.strip("-0.") else text.replace("-", "\N{MINUS SIGN}")


def headline(report: Report) -> str:
    """The result in one line."""
    winner = report.winner
    if winner is None:
        return "No candidate kept the budget. The original model stands."
    smaller = times(report.original.nbytes, winner.nbytes)
    faster = times(report.original.latency.value, winner.latency.value)
    return f"{smaller} smaller, {faster} as fast on {report.target}{'' if report.measured else ', ' + report.how}"


def sentence(report: Report) -> str:
    """The certificate, said in words; empty where nothing was certified."""
    certificate = report.certificate
    if certificate is None:
        return ""
    budget = _budget(certificate, report.metric)
    sure = percent(certificate.confidence)
    value, interval = drop(certificate.drop)
    measured = f" On them the drop is {value} (between {interval.replace(' to ', ' and ')} %)."
    if len(_judged(certificate)) > 1:
        measured = ""  # a drop for each, which stand below
    if certificate.verdict == "PASS":
        said = f"this model stays inside {budget}. {_count(certificate.n)} examples that had no part in choosing it"
        return f"With {sure} confidence {said} show it.{measured}"
    if certificate.verdict == "FAIL":
        shown = f"{_count(certificate.n)} examples show it."
        return f"With {sure} confidence the best candidate breaks {budget}. {shown}{measured}"
    more = f"About {_count(certificate.n_more)} more would" if certificate.n_more else "No attainable number would"
    undecided = f"{_count(certificate.n)} examples do not decide whether the best candidate keeps {budget}."
    return f"{undecided} {more}.{measured}"


def meaning(certificate: Certificate) -> str:
    """What a certificate promises and what it does not, for those who have not met one."""
    parts = list(certificate.parts.values()) or [certificate]
    risk = percent(round(1 - min(part.confidence for part in parts), 6))
    breaks, whole = f"truly drops more than {percent(certificate.max_drop)}", ""
    if certificate.parts:
        breaks = "truly breaks one of these budgets"
        whole = (
            "Each is tested at the full confidence, and all must pass, which needs no correction "
            "(an intersection-union test; Berger, Technometrics 1982). "
        )
    return (
        f"What that promises: a model that {breaks} is passed with a chance of at most {risk}, "
        "however many candidates were tried and whenever the test was stopped. Both models answered the same examples, "
        f"none of which had been used to calibrate or to choose. {whole}"
        "It speaks of data like these examples, and of no other."
    )


def _judged(certificate: Certificate) -> list[Certificate]:
    """Those that a verdict is of: of several metrics all with this verdict."""
    return [part for part in certificate.parts.values() if part.verdict == certificate.verdict] or [certificate]


def _budget(certificate: Certificate, metric: str) -> str:
    limits = [(percent(one.max_drop), _share(one), one.metric or metric) for one in _judged(certificate)]
    if len(limits) > 1:
        each = " and ".join(f"{limit}{share} by {name}" for limit, share, name in limits)
        return f"the budgets, drops in quality of at most {each}"
    ((limit, share, name),) = limits
    return f"the budget, a drop of at most {limit}{share} in quality, measured by {name}"


def _share(certificate: Certificate) -> str:
    return " of the original's own" if certificate.relative else ""


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
