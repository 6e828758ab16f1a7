"""Whether what a folder says of its model holds by itself."""

from collections.abc import Mapping
from typing import Any


def objection(certificate: Mapping[str, Any] | None) -> str | None:
    """Why a certificate, as it is written down, does not vouch for a model; None where it does, or there is none.

    A model without one claims nothing. One that is there must say PASS of every metric, and its figures must as well:
    the upper end of the drop is within the budget.
    """
    if certificate is None:
        return None
    for name, part in (certificate.get("parts") or {"": certificate}).items():
        whose = f" of {name}" if name else ""
        try:
            verdict, drop, budget = part["verdict"], part["drop"]["high"], part["max_drop"]
        except (KeyError, TypeError):
            return f"its certificate{whose} is damaged"
        if verdict != "PASS":
            return f"its certificate{whose} says {verdict}: the drop may be {drop:.2%}, and {budget:.2%} is allowed"
        if not drop <= budget:
            return f"its certificate{whose} says PASS, but a drop of {drop:.2%} is more than the {budget:.2%} allowed"
    return None
