"""Numbers and verdicts, as a reader wants them."""

from lissom.estimate import Estimate
from lissom.report.content import Report

NONE = "\N{EN DASH}"


def size(nbytes: float) -> str:
    """Bytes to three digits, in decimal units: 8.03 MB."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 999.5:
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
    return f"{smaller} smaller, {faster} as fast on {report.target}"


def sentence(report: Report) -> str:
    """The certificate, said in words; empty where nothing was certified."""
    certificate = report.certificate
    if certificate is None:
        return ""
    budget = f"the budget, a drop of at most {percent(report.budget.max_drop)} in quality, measured by {report.metric}"
    sure = percent(certificate.confidence)
    count = f"{certificate.n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    value, interval = drop(certificate.drop)
    measured = f"On them the drop is {value} (between {interval.replace(' to ', ' and ')} %)."
    if certificate.verdict == "PASS":
        said = f"this model stays inside {budget}. {count} examples that had no part in choosing it show it."
        return f"With {sure} confidence {said} {measured}"
    if certificate.verdict == "FAIL":
        return f"With {sure} confidence the best candidate breaks {budget}. {count} examples show it. {measured}"
    more = f"About {certificate.n_more} more would" if certificate.n_more else "No attainable number would"
    return f"{count} examples do not decide whether the best candidate keeps {budget}. {more}. {measured}"
