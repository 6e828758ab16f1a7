"""No naked numbers: a measurement with its interval, and the certificate that a budget was kept."""

from lissom.estimate.certificate import (
    Bounds,
    Certificate,
    Certifier,
    Verdict,
    certify,
    fewest_examples,
    joint,
    paired_difference,
)
from lissom.estimate.interval import Array, Estimate, mean_estimate, median_estimate, perplexity, proportion

__all__ = [
    "Array",
    "Bounds",
    "Certificate",
    "Certifier",
    "Estimate",
    "Verdict",
    "certify",
    "fewest_examples",
    "joint",
    "mean_estimate",
    "median_estimate",
    "paired_difference",
    "perplexity",
    "proportion",
]
