"""The text that is shown, against the slow definition: decode everything, cut at the first stop string to appear."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.engine.text import BROKEN, Detokenizer

TEXT = st.text(alphabet="abé€😀 ", max_size=30)
STOPS = st.lists(st.text(alphabet="abé€😀 ", min_size=1, max_size=4), max_size=3)


def decode(tokens: list[int]) -> str:
    """One token per byte: the hardest case, a character of up to four tokens."""
    return bytes(tokens).decode("utf-8", errors="replace")


def cut(text: str, stops: list[str]) -> str:
    """The oracle: grow the text by one character until a stop string is in it."""
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)]
    return text


@settings(max_examples=50)
@given(TEXT, STOPS)
def test_shows_everything_up_to_the_first_stop_string_and_never_more(text: str, stops: list[str]) -> None:
    expected = cut(text, stops)
    detokenizer, shown = Detokenizer(decode, tuple(stops)), ""
    for token in text.encode():
        shown += detokenizer.push(token)
        assert expected.startswith(shown)
        assert BROKEN not in shown
        if detokenizer.stopped:
            break
    else:
        shown += detokenizer.flush()
    assert shown == expected
    assert detokenizer.stopped == any(stop in text for stop in stops)


@settings(max_examples=50)
@given(TEXT)
def test_without_stop_strings_a_character_is_shown_with_its_last_byte(text: str) -> None:
    detokenizer, shown, sent = Detokenizer(decode), "", b""
    for byte in text.encode():
        sent += bytes([byte])
        shown += detokenizer.push(byte)
        assert shown == sent.decode("utf-8", errors="ignore")


def test_a_broken_end_is_shown_only_when_nothing_can_mend_it() -> None:
    detokenizer = Detokenizer(decode)
    shown = "".join(detokenizer.push(byte) for byte in "a€".encode()[:-1])
    assert shown == "a"
    assert detokenizer.flush() == BROKEN


def test_a_stop_string_counts_only_when_armed() -> None:
    detokenizer = Detokenizer(decode, ("b",))
    assert [detokenizer.push(byte, armed=False) for byte in b"ab"] == ["a", "b"]
    assert not detokenizer.stopped
    assert detokenizer.push(ord("b")) == ""
    assert detokenizer.stopped
