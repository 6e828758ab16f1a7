"""What `lissom serve` takes is what the engine takes."""

from lissom.cli.serve import KV_CACHES, SPECULATE
from lissom.engine.cache import AUTO, STORES
from lissom.engine.speculate import NEVER, WHERE_IT_PAYS


def test_the_choices_are_those_of_the_engine() -> None:
    assert (AUTO, *STORES) == KV_CACHES
    assert SPECULATE == (WHERE_IT_PAYS, NEVER)
