"""What a request would wait for, by hand; and that a server which cannot keep its promise says when to come back."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from lissom.server import LanguageService, Limits, create_app
from lissom.server.admission import Admission, Rate


class Clock:
    """A time that passes when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(places: int, promise: float, *, read: float, serve: float) -> tuple[Admission, Clock]:
    """An account that knows how many tokens are read in a second, and how long a sequence takes."""
    clock = Clock()
    admission = Admission(places, promise, clock)
    admission.read(read, 1.0)
    admission.enter("first", 0)
    admission.begin("first")
    clock.now += serve
    admission.end("first")
    return admission, clock


def test_prompts_ahead_are_read_first() -> None:
    admission, _ = measured(8, 10.0, read=100.0, serve=4.0)
    assert admission.wait(200) == pytest.approx(2.0)
    admission.enter("a", 300)
    assert admission.wait(200) == pytest.approx(5.0)
    admission.begin("a")
    assert admission.wait(200) == pytest.approx(2.0)


def test_without_a_place_one_waits_for_others_to_end() -> None:
    admission, _ = measured(2, 10.0, read=100.0, serve=6.0)
    for name in "abc":
        admission.enter(name, 0)
    admission.begin("a")
    admission.begin("b")  # c waits, and one more would
    assert admission.wait(100) == pytest.approx(2 * 6.0 / 2 + 1.0)
    admission.leave("c")
    admission.end("b")
    assert admission.wait(100) == pytest.approx(1.0)


def test_nothing_is_refused_before_anything_is_measured_or_while_nobody_is_ahead() -> None:
    admission = Admission(1, 0.5)
    admission.enter("a", 10**6)
    admission.check(10**6)
    admission, _ = measured(1, 0.5, read=1.0, serve=1.0)
    admission.check(10**6)


def test_what_would_be_late_is_told_when_to_come_back() -> None:
    admission, _ = measured(4, 2.5, read=100.0, serve=1.0)  # a fifth less, before anything is known of queues
    admission.enter("a", 150)
    admission.check(50)
    with pytest.raises(HTTPException) as caught:
        admission.check(400)  # 5.5 seconds, 3.5 too many
    assert (caught.value.status_code, caught.value.headers) == (429, {"Retry-After": "4"})


def test_how_late_first_tokens_came_is_taken_off_what_is_promised() -> None:
    admission, clock = measured(64, 10.0, read=100.0, serve=4.0)
    admission.enter("running", 0)
    assert admission.slack() == 2.0  # before anything is known
    for late in range(256):  # 0, 0.01, ... 2.55 seconds more than the one that is expected
        admission.enter(late, 100)
        clock.now += 1.0 + 0.01 * late
        admission.begin(late)
        admission.leave(late)
    assert admission.slack() == pytest.approx(2.53)
    admission.check(746)
    with pytest.raises(HTTPException, match="429"):
        admission.check(748)
    for name in "abc":
        admission.enter(name, 100)
        clock.now += 1000.0
        admission.begin(name)
    assert admission.slack() == 5.0  # half of what is promised, at most


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1e-3, 10)), min_size=1))
def test_a_rate_lies_between_those_that_were_seen(seen: list[tuple[float, float]]) -> None:
    rate = Rate()
    for done, seconds in seen:
        rate.see(done, seconds)
    speeds = [seconds / done for done, seconds in seen]
    assert min(speeds) * (1 - 1e-9) <= rate.time(1) <= max(speeds) * (1 + 1e-9)


def test_a_server_refuses_what_it_could_not_answer_in_time(start: Any, model: Any, tokenizer: Any) -> None:
    service = LanguageService(model=model, tokenizer=tokenizer, name="stories", max_batch=1)
    asked = {"model": "stories", "prompt": [5] * 600, "max_tokens": 100, "ignore_eos": True}
    limits = Limits(first_token_seconds=1e-3)
    with start(create_app([service], limits=limits)) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/v1/completions", json=asked).status_code == 200  # nothing was known yet
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/completions", json=asked), range(8)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert client.post("/v1/completions", json=asked).status_code == 200  # and all places are free again
