import pytest

from lissom.hardware import interleave, measure, peak_memory, rounds_ms


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes only when a function under test says so."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def takes(*ms):
        durations = iter(ms)

        def function():
            now[0] += next(durations) / 1000

        return function

    return takes


def test_functions_take_turns():
    called = []
    rounds_ms({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=3, warmup=1)
    assert called == ["a", "b"] * 4


def test_warming_up_does_not_count(clock):
    times = rounds_ms({"a": clock(50, 1, 2), "b": clock(90, 3, 4)}, rounds=2, warmup=1)
    assert times["a"] == pytest.approx([1, 2])
    assert times["b"] == pytest.approx([3, 4])


def test_medians_in_milliseconds(clock):
    found = interleave({"a": clock(1, 9, 2, 3, 1, 2, 2)}, rounds=7, warmup=0)["a"]
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((1, 9))
    assert (found.unit, found.n) == ("ms", 7)


def test_peak_memory_is_in_bytes():
    before = peak_memory()
    held = b"x" * (before + 2**26)
    assert before + 2**26 <= peak_memory() < before + len(held) + 2**28
