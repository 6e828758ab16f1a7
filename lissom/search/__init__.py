"""Finding the smallest model that the budget allows, and proving it."""

from lissom.search.candidates import for_language_model, for_module
from lissom.search.optimize import optimize
from lissom.search.result import Candidate, Point, Result

__all__ = ["Candidate", "Point", "Result", "for_language_model", "for_module", "optimize"]
