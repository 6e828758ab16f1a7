"""Finding the smallest model that the budget allows, and proving it."""

from lissom.search.channels import allocate_channels
from lissom.search.optimize import optimize
from lissom.search.recut import Recut, recut
from lissom.search.result import Candidate, Point, Result
from lissom.search.sparsity import allocate_sparsity

__all__ = [
    "Candidate",
    "Point",
    "Recut",
    "Result",
    "allocate_channels",
    "allocate_sparsity",
    "optimize",
    "recut",
]
