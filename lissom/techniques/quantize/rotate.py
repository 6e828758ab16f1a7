"""Rotate: outliers are spread over channels by an orthogonal matrix, which the next layer undoes.

Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler, Hensman, QuaRot, NeurIPS 2024, arXiv:2404.00456,
section 4; Liu et al., SpinQuant, ICLR 2025, arXiv:2405.16406, its R2. What attention makes of the values is a sum of
them, so that within a head

    (A x W_vᵀ) W_oᵀ = (A x W_vᵀ Q) (W_o Q)ᵀ        W_v -> Qᵀ W_v,  W_o -> W_o Q

which costs nothing when the model runs. Q is a Hadamard matrix with random signs where there is one, otherwise a random
orthogonal one. Channels on whose way something acts on each by itself stay as they are.

Shapes: c channels, u channels of a unit.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lissom.coupling import Coupling
from lissom.techniques.knobs import seed_of

PALEY = (12, 20)  # one more than a prime of the form 4k + 3: Hadamard matrices whose size is no power of two


def rotate(c: Coupling, /, *, seed: int = 0) -> Coupling:
    """The channels of every unit rotated alike."""
    seed = seed_of(seed)
    if not c.rotates:
        return c
    with torch.device("cpu"):  # the same one wherever the layers are
        q = rotation(c.unit, seed).to(c.makers[0].device)
    makers = tuple(turned(m.float().T, q, c.channels).T.contiguous() for m in c.makers)
    readers = tuple(replace(r, matrix=turned(r.matrix.float(), q, c.channels)) for r in c.readers)
    return replace(c, makers=makers, readers=readers)


def turned(w: Float[Tensor, "n i"], q: Float[Tensor, "u u"], channels: int) -> Float[Tensor, "n i"]:
    """W Q for the columns of each unit; where a channel has several columns, for the first of each, the second, ..."""
    n, u = w.shape[0], q.shape[0]
    found: Tensor = torch.einsum("ntuk,uv->ntvk", w.reshape(n, channels // u, u, -1), q).reshape(w.shape)
    return found


def rotation(u: int, seed: int) -> Float[Tensor, "u u"]:
    """A random orthogonal matrix; every entry ±1/√u where a Hadamard matrix of that size is made here."""
    generator = torch.Generator().manual_seed(seed)
    h = hadamard(u)
    if h is None:
        q, r = torch.linalg.qr(torch.randn(u, u, generator=generator, dtype=torch.float64))
        found: Tensor = q * r.diagonal().sign()
        return found.float()
    signs = torch.randint(2, (u, 1), generator=generator) * 2.0 - 1
    return h.mul_(signs).div_(u**0.5)


def hadamard(u: int) -> Float[Tensor, "u u"] | None:
    """A matrix of ±1 with HᵀH = u I, for a power of two or that times 12 or 20; None for others."""
    if u == 1:
        return torch.ones(1, 1)
    if u in PALEY:
        return paley(u)
    half = hadamard(u // 2) if u % 2 == 0 else None
    return None if half is None else torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), half)


def paley(u: int) -> Float[Tensor, "u u"]:
    """I + S, with S skew and made of the squares modulo the prime u - 1 (Paley, 1933, construction I)."""
    p = u - 1
    squares = {n * n % p for n in range(1, p)}
    character = torch.tensor([0.0] + [1.0 if n in squares else -1.0 for n in range(1, p)])
    s = torch.zeros(u, u)
    s[0, 1:], s[1:, 0] = 1, -1
    s[1:, 1:] = character[(torch.arange(p).unsqueeze(1) - torch.arange(p)) % p]
    return torch.eye(u) + s
