"""Permute the stream: the channels of a language model's residual stream change places, for all that reads them.

Zhang, Bai, Lin, Zhao, Hou, Cannistraci, ICLR 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large
Language Models", section 4, permute the inputs of every layer; those that read the stream share one order here, which
is folded into all that writes to it: the embedding, the norms, the output and down projections. See `permute.py`.
"""

from lissom.coupling import Coupling
from lissom.statistics import Gram
from lissom.techniques.prune.permute import permute


def permute_stream(
    c: Coupling, x: tuple[Gram, ...], /, *, keep: int = 2, of: int = 4, power: float = 0.5, rounds: int = 4
) -> Coupling:
    """The stream's channels in the order of which `keep` of every `of` keep most; `x` has the Gram of each reader."""
    if c.kind not in ("width", "order"):
        return c
    return permute(c, x, keep=keep, of=of, power=power, rounds=rounds)
