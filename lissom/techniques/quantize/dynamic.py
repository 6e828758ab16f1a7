"""Dynamic: the input of a layer is rounded as it comes, to integers or small floats, with a scale for each token.

Dettmers et al., LLM.int8(), NeurIPS 2022, arXiv:2208.07339, section 2.1; Xiao et al., SmoothQuant, ICML 2023,
arXiv:2211.10438, table 2 (its O1). After `smooth` and 8-bit weights it is W8A8, after 4-bit weights W4A8:

    q = round(x / a)        a = max_j |x_j| / (2^(b-1) - 1)

Weights that are no integers yet become those of 8 bits, to the nearest with a scale for each output. Weights in E4M3
have inputs in E4M3 (Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433): W8A8 in floats.
"""

from lissom.errors import RecipeError
from lissom.formats import Affine, Dense, Dynamic, Floats, Masked, Narrow, Weight
from lissom.formats.narrow import KIND
from lissom.statistics import Moments
from lissom.techniques.knobs import between
from lissom.techniques.quantize.rtn import rtn


def dynamic(w: Weight, x: Moments, /, *, bits: int = 8) -> Dynamic | Narrow:
    """Inputs of `bits` bits for integer weights, of 8 for small floats."""
    between(2, 8, bits=bits)
    if isinstance(w, Narrow) or (isinstance(w, Floats) and w.kind == KIND):
        return small(w, bits)
    if isinstance(w, Dynamic):
        w = w.affine
    affine = rtn(w, x) if isinstance(w, Dense | Masked) else w
    if not isinstance(affine, Affine):
        raise RecipeError(
            f"integer inputs need integer weights, not {type(w).__name__.lower()}; put rtn or gptq before"
        )
    return Dynamic(affine=affine, inputs=bits)


def small(w: Floats | Narrow, bits: int) -> Narrow:
    """Inputs in small floats."""
    if bits != 8:
        raise RecipeError(f"bits={bits}: weights in {KIND} have inputs of 8 bits; put rtn or gptq before for fewer")
    return w if isinstance(w, Narrow) else Narrow(floats=w)
