"""The shapes of a language model as arithmetic: its matrices, and what a token costs in them.

Blocks are those of Llama: queries, keys, values and their mix; a gate, what is gated, and their sum, once or for each
expert. Vectors (norms, biases) are not counted. FLOPs are additions and multiplications: two for each weight and token,
and, of attention, 4 s a d for each of s tokens (Narayanan et al. 2021, arXiv:2104.04473, appendix; what a mask would
save is not taken off, as there).

Letters: h hidden, a heads of d, k heads of keys and values, f neurons, e experts of which c are chosen, v entries of
the vocabulary, s tokens of a window.
"""

from dataclasses import dataclass

GRID = 8  # bytes that making a matrix from its format keeps for each weight until the way back, beside the matrix
STREAM = {
    2: 26,
    4: 24,
}  # bytes of activations of each channel of the residual stream that are kept, by bytes of products


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A decoder.

    Args:
        blocks, hidden, heads, kv_heads, head_dim, vocabulary: as they are called.
        inner: neurons of a block that has no experts.
        sparse: how many of the blocks have experts; each has `experts` of `expert_inner` neurons, of which a token
            goes through `chosen`.
        tied: whether the head is the embedding.
        bits, end_bits: of a stored weight in the blocks, and in the embedding and the head.
        original_bits: of a weight of the model that it was made from.
    """

    blocks: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool = False
    sparse: int = 0
    experts: int = 0
    chosen: int = 0
    expert_inner: int = 0
    bits: float = 16.0
    end_bits: float = 16.0
    original_bits: float = 16.0

    @property
    def attention_weights(self) -> int:
        """Of one block: h a d for queries and for what mixes, h k d for keys and for values."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def block_weights(self) -> float:
        """Of one block, the mean over all."""
        return self.attention_weights + self.mean(3 * self.hidden * self.inner, self.expert_weights(self.experts))

    @property
    def active_weights(self) -> float:
        """Those of a block that a token meets, the mean over all blocks."""
        return self.attention_weights + self.mean(3 * self.hidden * self.inner, self.expert_weights(self.chosen))

    def touched_weights(self, tokens: float) -> float:
        """Those of a block that any of so many tokens meets, if each chooses its experts without regard to others."""
        if not self.sparse:
            return self.block_weights
        met = self.experts * (1 - (1 - self.chosen / self.experts) ** max(tokens, 1))
        return self.attention_weights + self.mean(3 * self.hidden * self.inner, self.expert_weights(met))

    def expert_weights(self, count: float) -> float:
        """Of so many experts of a block, and of what chooses among all."""
        return 3 * self.hidden * self.expert_inner * count + self.hidden * self.experts

    def mean(self, dense: float, sparse: float) -> float:
        """Over blocks without experts and with."""
        return ((self.blocks - self.sparse) * dense + self.sparse * sparse) / self.blocks

    @property
    def widths(self) -> tuple[int, ...]:
        """How many neurons there are of each kind of block."""
        dense, sparse = self.sparse < self.blocks, self.sparse > 0
        return (self.inner,) * dense + (self.expert_inner,) * sparse

    @property
    def end_weights(self) -> int:
        """Of the embedding and the head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """All of them."""
        return round(self.blocks * self.block_weights) + self.end_weights

    @property
    def nbytes(self) -> float:
        """What all of them take, as they are stored."""
        return (self.blocks * self.block_weights * self.bits + self.end_weights * self.end_bits) / 8

    def block_flops(self, length: float) -> float:
        """Of one block forwards, for one token among windows of `length`; backwards it is twice that."""
        return 2 * self.active_weights + 4 * length * self.heads * self.head_dim

    @property
    def head_flops(self) -> float:
        """Of the head forwards, for one token."""
        return 2 * self.hidden * self.vocabulary

    def model_flops(self, length: float) -> float:
        """Of the whole model forwards, for one token."""
        return self.blocks * self.block_flops(length) + self.head_flops

    def kept_bytes(self, width: int, tensor: int = 1) -> float:
        """Activations of a block that one token leaves for the way back, on each of `tensor` devices.

        Korthikanti et al. 2022, arXiv:2205.05198, eq. (2), for the blocks here: without dropout, attention that keeps
        none of its scores, a gate, and a residual stream in float32, which is not divided. 4 w f + 2 w (a + k) d bytes
        are divided, 24 h (26 h where products are in 16 bits) are not. Counted from what PyTorch keeps.
        """
        inner = self.mean(self.inner, self.expert_inner * self.chosen)
        divided = width * (4 * inner + 2 * (self.heads + self.kv_heads) * self.head_dim)
        return divided / tensor + STREAM[width] * self.hidden

    def cache_bytes(self, width: int = 2) -> float:
        """Keys and values of one token, in all blocks."""
        return 2 * self.blocks * self.kv_heads * self.head_dim * width
