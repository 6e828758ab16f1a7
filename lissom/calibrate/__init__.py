"""What data goes through a model, and what is remembered of it."""

from lissom.calibrate.data import Batch, batches, call, token_windows
from lissom.calibrate.observe import observe

__all__ = ["Batch", "batches", "call", "observe", "token_windows"]
