"""Scores per example, of one model and of two compared."""

from lissom.evaluate.certify import certify_beside, certify_models
from lissom.evaluate.compare import Comparison, Paired, compare, paired
from lissom.evaluate.metric import METRICS, Metric, metric

__all__ = [
    "METRICS",
    "Comparison",
    "Metric",
    "Paired",
    "certify_beside",
    "certify_models",
    "compare",
    "metric",
    "paired",
]
