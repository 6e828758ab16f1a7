"""Where in a text its tokens stand, counted in characters, as completions tell it."""

from collections.abc import Iterable, Sequence

from lissom.engine.text import Decode, Detokenizer


class Offsets:
    """Those of tokens as they come, behind so many characters.

    The tokens of one character all stand where it does, and one that is not shown stands where the next does.
    """

    def __init__(self, decode: Decode, behind: int = 0) -> None:
        self.end = behind
        self._words = Detokenizer(decode)

    def push(self, tokens: Iterable[int]) -> list[int]:
        """Where some more tokens stand."""
        found = list[int]()
        for token in tokens:
            found.append(self.end)
            self.end += len(self._words.push(token))
        return found


def of_prompt(tokens: Sequence[int], text: str, ways: Iterable[Decode]) -> list[int]:
    """Where the tokens of a prompt stand in its text, which shows special tokens or not.

    The first way to decode them that gives a text as long as this is taken for the one; if none does, the last.
    """
    found = list[int]()
    for decode in ways:
        offsets = Offsets(decode)
        found = offsets.push(tokens)
        if offsets.end == len(text):
            return found
    return [min(place, len(text)) for place in found]
