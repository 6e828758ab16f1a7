"""What the tables say, in sentences."""

from collections.abc import Sequence

from run import Run
from table import Row, kl_ratio, span
from wikilm import LENGTH


def reading(run: Run) -> list[str]:
    """All that can be said of what is known."""
    said = [*against_bits(run), *against_sizes(run), *against_pruned(run), *orders(run), *limits(run)]
    return ["## Reading", "", *(f"- {line}" for line in said), ""] if said else []


def best(rows: Sequence[Row], most: int) -> Row | None:
    """The row of least KL divergence that takes at most so many bytes, as files are counted."""
    return min((row for row in rows if row.file_bytes <= most), key=lambda row: row.figures.kl.value, default=None)


def against_bits(run: Run) -> list[str]:
    """Beside each peer that makes integers, the best of our integers that take no more bytes."""
    said = []
    for peer in run.theirs("bits"):
        own = best(run.ours("bits"), peer.file_bytes)
        if own is not None and peer.clock and own.clock and peer.seconds and own.seconds:
            said.append(
                f'"{own.name}" beside "{peer.name}": {own.bits:.2f} and {peer.bits:.2f} bits per weight; '
                f"{span(kl_ratio(own, peer), '.2f')} times its KL divergence; {own.clock / peer.clock:.2f} times its "
                f"seconds by the clock, {own.seconds / peer.seconds:.2f} times those of the processor."
            )
    return said


def against_sizes(run: Run) -> list[str]:
    """At the file sizes of llama.cpp."""
    said = []
    for peer in run.theirs("sizes"):
        own = best([row for table in ("sizes", "compositions", "bits") for row in run.ours(table)], peer.file_bytes)
        if own is not None:
            said.append(
                f'Within the bytes of "{peer.name}" ({peer.file_bytes:,}, vocabulary and all): "{own.name}" takes '
                f"{own.file_bytes:,} and has {span(kl_ratio(own, peer), '.2f')} times its KL divergence."
            )
    return said


def against_pruned(run: Run) -> list[str]:
    """The perplexity that pruning costs, beside SparseGPT's."""
    said = []
    for pattern in ("50 %", "2:4"):
        for peer in (row for row in run.rows("sparsity") if "sparsegpt" in row.name.lower() and pattern in row.name):
            others = [row for row in run.ours("sparsity") if pattern in row.name and row.name != peer.name]
            least = min(others, key=lambda row: row.figures.drop.value, default=None)
            if least is not None:
                said.append(
                    f'Pruned to {pattern}, "{least.name}" raises the perplexity '
                    f'{least.figures.drop.value / peer.figures.drop.value:.2f} times as much as "{peer.name}".'
                )
    return said


def orders(run: Run) -> list[str]:
    """The rows of some tables by what they cost."""
    return [f"By KL divergence, from the best: {ordered(run.rows(table))}." for table in ("sparsity",) if run.of(table)]


def ordered(rows: Sequence[Row]) -> str:
    """The names of rows by what they cost in KL divergence."""
    found = sorted(rows, key=lambda row: row.figures.kl.value)
    return "; ".join(f"{row.name} ({row.figures.kl.value:.4f})" for row in found)


def limits(run: Run) -> list[str]:
    """What the tables do not say."""
    if not run.rows("alone"):
        return []
    return [
        f"One small model, windows of {LENGTH} tokens, calibrated on text of the kind it is tested on. The intervals "
        "are over the test windows, not over other models or other calibration texts. The best of several rows was "
        "picked by the same test windows that it is quoted on."
    ]
