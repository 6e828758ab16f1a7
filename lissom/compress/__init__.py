"""The conductor: look at what goes through the layers, act on their weights, pass on."""

from lissom.compress.memory import compress_model, quantize_model, quantizing
from lissom.compress.plan import match
from lissom.compress.stream import Piece, stream_checkpoint

__all__ = [
    "Piece",
    "compress_model",
    "match",
    "quantize_model",
    "quantizing",
    "stream_checkpoint",
]
