"""Vector codebooks: an index stands for several inputs that follow one another.

Baalen, Kuzmin, Nagel, Couperus, Bastoul, Mahurin, Blankevoort, Whatmough, GPTVQ, 2024, arXiv:2402.15319: a codebook of
vectors by k-means weighted with the Hessian's diagonal (section 3.2), the column sweep over vectors with error feedback
(algorithm 1), then the codebook that makes the layer's output error least (section 3.3). Where the paper descends by
gradient once, entries are solved for here by turns with the indices, as LNQ does.

k-means starts from the products of scalar codebooks, from which Lloyd's iterations only get better.

Shapes: o outputs, i inputs, p codebooks, n vectors of a codebook, e entries, d inputs of a vector.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lissom.errors import RecipeError
from lissom.formats import Palette, Weight
from lissom.formats.palette import multiplied
from lissom.formats.weight import stored
from lissom.statistics import Gram
from lissom.techniques.knobs import at_least, between
from lissom.techniques.share import kmeans
from lissom.techniques.share.descent import Shared, improve, start


def vectors(
    w: Weight,
    x: Gram,
    /,
    *,
    bits: int = 4,
    width: int = 2,
    rows: int = 0,
    group: int = 0,
    iterations: int = 10,
    damp: float = 0.01,
) -> Palette:
    """A codebook of 2^bits vectors of `width` inputs for each `rows` rows (0: one for the matrix).

    A weight takes bits / width bits, and each `group` inputs of a row (0: all) a scale.
    """
    return shared_by_vectors(w, x, bits=bits, width=width, rows=rows, group=group, iterations=iterations, damp=damp)


def shared_by_vectors(
    w: Weight, x: Gram, *, bits: int, width: int, rows: int, group: int, iterations: int, damp: float
) -> Palette:
    """Codebooks by weighted k-means, indices by the column sweep, then both in turns under the Gram."""
    matrix, kept = w.dense(), w.kept()
    o, i = matrix.shape
    check(i, bits, width, rows, group)
    at_least(1, iterations=iterations)
    at_least(0, damp=damp)
    rows, group = min(rows or o, o), group or i
    power = x.power.clamp(min=0).expand_as(matrix)
    power = power if kept is None else power * kept
    scale = None if rows == 1 and group == i else scales(matrix, power, group)
    plain = matrix if scale is None else multiplied(matrix, 1 / scale)
    weights = power if scale is None else multiplied(power, scale.square())
    books = stored(fit(by_vectors(plain, rows, width), by_vectors(weights, rows, width), 2**bits)).float()
    h = x.mean.clone()
    h.diagonal().add_(damp * h.diagonal().mean())
    indices = torch.zeros(o, i // width, dtype=torch.int64, device=matrix.device)
    shared = Shared(books=books, indices=indices, rows=rows, scale=scale, kept=kept)
    return improve(matrix, start(matrix, shared, x.xtx, damp), h, iterations).palette()


def check(inputs: int, bits: int, width: int, rows: int, group: int) -> None:
    """See that the knobs suit the layer.

    Raises:
        RecipeError: they do not.
    """
    between(1, 8, bits=bits)
    at_least(0, rows=rows)
    for name, size, of in (("width", width, inputs), ("group", group or inputs, inputs)):
        if size < 1 or of % size:
            possible = ", ".join(str(n) for n in (2, 3, 4, 8, 32, 64, 128) if of % n == 0) or "1"
            raise RecipeError(f"{name}={size} does not divide {of} inputs; try {possible}")
    if (group or inputs) % width:
        raise RecipeError(f"width={width} does not divide group={group}; a vector has one scale")


def scales(matrix: Float[Tensor, "o i"], power: Float[Tensor, "o i"], group: int) -> Float[Tensor, "o g"]:
    """The weighted root mean square of each group, as it is stored; 1 where there is nothing."""
    squares, weights = ((t.unflatten(1, (-1, group)).sum(2)) for t in (matrix.square() * power, power))
    size = (squares / weights).sqrt()
    return stored(torch.where((weights > 0) & (squares > 0), size, 1.0)).float()


def by_vectors(matrix: Float[Tensor, "o i"], rows: int, width: int) -> Float[Tensor, "p n d"]:
    """The vectors of each codebook's rows, those that are missing in the last one zero."""
    padded = F.pad(matrix, (0, 0, 0, -len(matrix) % rows))
    return padded.reshape(-1, rows * matrix.shape[1] // width, width)


def fit(
    vectors: Float[Tensor, "p n d"], weights: Float[Tensor, "p n d"], entries: int, iterations: int = 20
) -> Float[Tensor, "p e d"]:
    """k-means, each input of each vector weighted; of one input, the exact way."""
    books = product(vectors, weights, entries)
    return (
        books
        if vectors.shape[2] == 1
        else torch.stack([lloyd(*lot, iterations) for lot in zip(vectors, weights, books, strict=True)])
    )


def product(vectors: Float[Tensor, "p n d"], weights: Float[Tensor, "p n d"], entries: int) -> Float[Tensor, "p e d"]:
    """All combinations of scalar codebooks that share the bits among the inputs."""
    bits, d = (entries - 1).bit_length(), vectors.shape[2]
    shares = [2 ** (bits // d + (k < bits % d)) for k in range(d)]
    axes = [kmeans.fit(vectors[:, :, k], weights[:, :, k], share, 30) for k, share in enumerate(shares)]
    ranges = (torch.arange(share, device=vectors.device) for share in shares)
    places = torch.cartesian_prod(*ranges).reshape(entries, d)
    return torch.stack([axis[:, places[:, k]] for k, axis in enumerate(axes)], 2)


def lloyd(
    vectors: Float[Tensor, "n d"], weights: Float[Tensor, "n d"], book: Float[Tensor, "e d"], iterations: int
) -> Float[Tensor, "e d"]:
    """Assign to the entry of least weighted distance, move to the weighted mean; one that nothing uses stays."""
    heavy = weights * vectors
    for _ in range(iterations):
        cost = torch.addmm(weights @ book.square().T, heavy, book.T, alpha=-2)
        nearest = cost.argmin(1)
        share = torch.zeros_like(book).index_add_(0, nearest, weights)
        total = torch.zeros_like(book).index_add_(0, nearest, heavy)
        book = torch.where(share > 0, total / share, book)
    return book
