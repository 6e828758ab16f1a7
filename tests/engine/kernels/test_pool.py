"""Threads that share out a task: every item is done once, by whomever."""

import ctypes
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissom.engine.kernels import native

pytestmark = pytest.mark.skipif(not native.kernels(), reason="no compiler was there when lissom was installed")

WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_int)


def done(share_out: str, count: int, chunk: int, threads: int) -> tuple[list[int], set[int]]:
    """The items in the order in which they were done, and the threads that did them."""
    items, who = list[int](), set[int]()

    @WORK
    def work(_: object, first: int, last: int, thread: int) -> None:
        items.extend(range(first, last))
        who.add(thread)

    each = native.library()[share_out]  # type: ignore[index]
    each.argtypes = [WORK, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_int]
    each(work, None, count, chunk, threads)
    return items, who


@pytest.mark.parametrize("share_out", ["lissom_each", "lissom_each_beside_torch"])
@given(count=st.integers(0, 300), chunk=st.integers(1, 40), threads=st.integers(1, 5))
def test_every_item_is_done_once(share_out: str, count: int, chunk: int, threads: int) -> None:
    items, who = done(share_out, count, chunk, threads)
    assert sorted(items) == list(range(count))
    assert who <= set(range(threads))


def test_callers_at_the_same_time_do_not_mix() -> None:
    found: dict[int, list[bool]] = {}

    def call(number: int) -> None:
        for _ in range(20):
            items, _who = done("lissom_each", 50 + number, 3, 3)
            found.setdefault(number, []).append(sorted(items) == list(range(50 + number)))

    callers = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == {number: [True] * 20 for number in range(3)}
