"""How gradients are written down when they travel: one code, one paper.

A code that always errs the same way is for use with error feedback: what it lost of a gradient is added to the next one
(Karimireddy et al., ICML 2019, arXiv:1901.09847, algorithm 2). Those that draw lots err to all sides, and need none.
"""

from lissom.recover.parallel.codes.code import Code
from lissom.recover.parallel.codes.integers import Integers
from lissom.recover.parallel.codes.qsgd import Qsgd
from lissom.recover.parallel.codes.sign import Sign
from lissom.recover.parallel.codes.ternary import TernGrad
from lissom.recover.parallel.codes.topk import TopK

__all__ = ["Code", "Integers", "Qsgd", "Sign", "TernGrad", "TopK"]
