"""Frames arrive as they were sent, in either kind of reader, and a sampling means the same at the other end."""

import asyncio
import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissom.engine import Grammar, Sampling
from lissom.engine.link import Link, receive, said_of, sampling_of, written
from lissom.errors import DataError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FRAMES = st.lists(st.tuples(st.dictionaries(st.text(), JSON), st.binary()), max_size=4)


@given(FRAMES)
def test_frames_come_one_by_one_and_then_none(frames: list[tuple[dict[str, Any], bytes]]) -> None:
    ours, theirs = socket.socketpair()
    sender, receiver = Link(ours), Link(theirs)
    for frame in frames:
        sender.send(*frame)
    sender.close()
    assert [receiver.receive() for _ in range(len(frames) + 1)] == [*frames, None]
    receiver.close()


@given(FRAMES, st.integers(0, 30))
def test_an_event_loop_reads_the_same_however_the_stream_ends(
    frames: list[tuple[dict[str, Any], bytes]], cut: int
) -> None:
    stream = b"".join(written(*frame) for frame in frames)
    whole = len(stream)

    async def read() -> list[Any]:
        reader = asyncio.StreamReader()
        reader.feed_data(stream[: max(whole - cut, 0)])
        reader.feed_eof()
        found = []
        while (frame := await receive(reader)) is not None:
            found.append(frame)
        return found

    found = asyncio.run(read())
    assert found == frames[: len(found)]
    assert len(found) == len(frames) if not cut or not frames else len(found) < len(frames)


def test_a_stream_cut_off_within_a_frame_ends() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(written({"a": 1}, b"12345")[:-2])
    ours.close()
    link = Link(theirs)
    assert link.receive() is None
    link.close()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.1, seed=2**63, max_tokens=5, stop=("a", "b"), stop_tokens=(3,), logit_bias={7: -1.5}),
        Sampling(grammar=Grammar(kind="json", text="{}"), logprobs=0),
    ],
)
def test_a_sampling_is_the_same_at_the_other_end(sampling: Sampling) -> None:
    assert sampling_of(json.loads(json.dumps(said_of(sampling)))) == sampling


def test_a_sampling_that_cannot_be_is_refused_there_too() -> None:
    with pytest.raises(DataError, match="temperature"):
        sampling_of({**said_of(Sampling()), "temperature": -1})
