"""Whose turn it is: of those who wait, he for whom least has been done.

The virtual token counter of Sheng et al. ("Fairness in Serving Large Language Models", OSDI 2024, arXiv:2401.00588,
algorithm 2): a token that is read counts 1 for its owner, a pass that writes counts 2. Whoever comes back after a while
starts at the least of those who are there: by being away one saves nothing up.
"""

from collections.abc import Iterable

READ, WRITTEN = 1.0, 2.0


class Fairness:
    """What has been done for each owner of sequences."""

    def __init__(self) -> None:
        self._done: dict[str, float] = {}

    def join(self, owner: str, present: Iterable[str]) -> None:
        """Someone who had nothing here has something again, beside those who are present."""
        least = min((self._done.get(other, 0.0) for other in present), default=0.0)
        self._done[owner] = max(self._done.get(owner, 0.0), least)

    def count(self, owner: str, *, read: int, written: int) -> None:
        """So many tokens have been read, and so many passes have written, for him."""
        self._done[owner] = self.of(owner) + READ * read + WRITTEN * written

    def of(self, owner: str) -> float:
        """What has been done for him."""
        return self._done.get(owner, 0.0)
