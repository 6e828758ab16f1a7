"""Which weights to keep, given a score for each. Shapes: o outputs, i inputs."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lissom.errors import RecipeError
from lissom.techniques.knobs import fraction


def keep_largest(score: Float[Tensor, "o i"], sparsity: float, keep: int | None, of: int | None) -> Bool[Tensor, "o i"]:
    """Keep `keep` of every `of` consecutive inputs, or without those the (1 - sparsity) largest of each row.

    To compare across a whole matrix, pass it as a single row. A score of -inf is kept only if nothing else is left.

    Raises:
        RecipeError: the sparsity is no fraction, or the pattern does not fit the row.
    """
    rows, columns = score.shape
    check(sparsity, keep, of, columns)
    if keep is None or of is None:
        return _top(score, columns - int(sparsity * columns))
    return _top(score.reshape(-1, of), keep).reshape(rows, columns)


def check(sparsity: float, keep: int | None, of: int | None, inputs: int) -> None:
    """See that it can be said what to keep of so many inputs.

    Raises:
        RecipeError: the sparsity is no fraction, or the pattern does not fit the row.
    """
    fraction(sparsity=sparsity)
    if keep is None and of is None:
        return
    if keep is None or of is None or not 0 < keep < of:
        raise RecipeError(f"keep={keep}, of={of} is no pattern; give both, such as keep=2, of=4")
    if inputs % of:
        raise RecipeError(f"of={of} does not divide {inputs} inputs")


def _top(score: Float[Tensor, "r c"], count: int) -> Bool[Tensor, "r c"]:
    """The `count` largest of each row, the first of equals; the threshold is selected, for sorting takes far longer."""
    threshold = score.kthvalue(score.shape[1] - count + 1, dim=1, keepdim=True).values
    above, level = score > threshold, score == threshold
    return above | (level & (level.cumsum(1) <= count - above.sum(1, keepdim=True)))


def unless_pruned(score: Float[Tensor, "o i"], kept: Bool[Tensor, "o i"] | None) -> Float[Tensor, "o i"]:
    """The score, and -inf for what an earlier technique pruned."""
    return score if kept is None else score.masked_fill(~kept, -torch.inf)
