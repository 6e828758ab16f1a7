"""The command line with few rounds of timing: for documents, of which nothing that is looked at hangs on times."""

from typing import Any

import lissom.hardware
from lissom.cli import main
from lissom.search import latency, trying

limits = lissom.hardware.limits


def roughly(seconds: float = 1.0, **how: Any) -> lissom.hardware.Limits:
    """The limits of this machine, from a glance."""
    return limits(0.02, **{"read_bytes": 2**26, **how})


if __name__ == "__main__":
    latency.MOST, trying.ROUNDS = latency.ROUNDS, latency.FEWEST
    lissom.hardware.limits = roughly
    main()
