"""Scores per example, of one model and of two compared."""

from lissom.evaluate.certify import Budgets, Given, budgets_of, certify_beside, certify_models, grades
from lissom.evaluate.compare import Comparison, Paired, compare, paired
from lissom.evaluate.metric import METRICS, Metric, metric

__all__ = [
    "METRICS",
    "Budgets",
    "Comparison",
    "Given",
    "Metric",
    "Paired",
    "budgets_of",
    "certify_beside",
    "certify_models",
    "compare",
    "grades",
    "metric",
    "paired",
]
