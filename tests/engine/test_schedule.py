"""Pages and schedule without a model: batching is only bookkeeping, so thousands of runs take a moment."""

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.engine.pages import PAGE, Pages, pages_for
from lissom.engine.schedule import Schedule, Slice
from lissom.engine.sequence import Choice, Sampling, Sequence
from lissom.engine.text import Detokenizer

TOTAL = 8  # pages
LENGTHS = st.lists(
    st.tuples(st.integers(1, TOTAL * PAGE // 2), st.integers(1, TOTAL * PAGE // 2)), min_size=1, max_size=12
)
NUMBERS = itertools.count(2)  # tokens that no other prompt holds


def sequence(prompt: int, limit: int = 4, *, token: int | None = None) -> Sequence:
    """A prompt of one token again and again: its own, or one that others hold too."""
    return Sequence(
        prompt=(next(NUMBERS) if token is None else token,) * prompt,
        sampling=Sampling(max_tokens=limit),
        limit=limit,
        detokenizer=Detokenizer(lambda tokens: "x" * len(tokens)),
        random=np.random.default_rng(0),
    )


def run(schedule: Schedule, slices: list[Slice]) -> None:
    """What the engine does around a forward pass."""
    complete = [piece.sequence for piece in slices if piece.completes]
    for one in complete:
        for guess in (*one.guesses, None):
            one.accept(Choice(token=1, logprob=0.0), end=())
            if guess != 1 or one.finish is not None:
                break
    schedule.record(slices)
    for one in complete:
        if one.finish is not None:
            schedule.remove(one)


def guessed(schedule: Schedule, slices: list[Slice], right: int, wrong: int) -> list[Slice]:
    """So many right guesses behind each token, and wrong ones behind them, as far as there is room."""
    for piece in slices:
        sequence = piece.sequence
        most = sequence.limit - len(sequence.generated) - 1
        room = schedule.stretch(sequence, min(right + wrong, most)) if piece.count == 1 and piece.completes else 0
        sequence.guesses.extend(([1] * right + [0] * wrong)[:room])
    return [replace(piece, count=piece.count + len(piece.sequence.guesses)) for piece in slices]


def attend(memory: dict[int, list[int]], slices: list[Slice]) -> None:
    """A cache that holds, where the keys and values of a token lie, all tokens up to it: what they depend on."""
    for piece in slices:
        known = piece.sequence.tokens(0, piece.start + piece.count)
        slots = [page * PAGE + inside for page in piece.sequence.pages for inside in range(PAGE)]
        for place in range(piece.start, len(known)):
            memory[slots[place]] = known[: place + 1]
        assert all(memory[slots[place]] == known[: place + 1] for place in range(len(known)))


@settings(max_examples=100)
@given(
    LENGTHS, st.integers(1, 5), st.integers(1, 40), st.sampled_from([None, 0]), st.integers(0, 20), st.integers(0, 20)
)
def test_every_sequence_finishes_within_the_limits(
    lengths: list[tuple[int, int]], batch: int, chunk: int, token: int | None, right: int, wrong: int
) -> None:
    pages, memory = Pages(TOTAL), dict[int, list[int]]()
    schedule = Schedule(pages, max_batch=batch, chunk=chunk)
    sequences = [sequence(prompt, limit, token=token) for prompt, limit in lengths]
    for one in sequences:
        schedule.add(one)
    while any(one.finish is None for one in sequences):
        slices = schedule.plan()
        prompts = sum(piece.count for piece in slices if piece.sequence.pending > 1)
        before, slices = schedule.preemptions, guessed(schedule, slices, right, wrong)
        assert schedule.preemptions == before, "nobody gives way to a guess"
        owned = {page for one in sequences for page in one.pages}
        assert slices, "the oldest sequence always makes progress"
        assert prompts <= chunk
        assert len(schedule.running) <= batch
        assert len(owned) == TOTAL - pages.free
        assert all(len(p.sequence.pages) >= pages_for(p.start + p.count) for p in slices)
        attend(memory, slices)
        attend(memory, slices)  # nothing that one slice needs has been written over by another
        run(schedule, slices)
        assert all(len(one.pages) <= pages_for(one.length) for one in schedule.running)
    assert pages.free == TOTAL
    assert [len(one.generated) for one in sequences] == [limit for _, limit in lengths]


@settings(max_examples=50)
@given(LENGTHS)
def test_the_oldest_is_never_preempted(lengths: list[tuple[int, int]]) -> None:
    schedule = Schedule(Pages(TOTAL), max_batch=8, chunk=16)
    sequences = [sequence(prompt, limit) for prompt, limit in lengths]
    for one in sequences:
        schedule.add(one)
    for oldest in sequences:
        while oldest.finish is None:
            before = oldest.cached
            run(schedule, schedule.plan())
            assert oldest.cached > before or oldest.finish is not None


def test_decoding_goes_on_while_a_long_prompt_is_read_in_chunks() -> None:
    schedule = Schedule(Pages(TOTAL), max_batch=4, chunk=10)
    short, long = sequence(3, limit=9), sequence(35)
    schedule.add(short)
    run(schedule, schedule.plan())
    schedule.add(long)
    steps = [schedule.plan()]
    for _ in range(3):
        run(schedule, steps[-1])
        steps.append(schedule.plan())
    assert [[(p.sequence is long, p.start, p.count) for p in step] for step in steps] == [
        [(False, 3, 1), (True, 0, 10)],
        [(False, 4, 1), (True, 10, 10)],
        [(False, 5, 1), (True, 20, 10)],
        [(False, 6, 1), (True, 30, 5)],
    ]


def test_the_youngest_gives_way_and_is_run_again_from_its_start() -> None:
    schedule = Schedule(Pages(2), max_batch=4, chunk=100)
    old, young = sequence(PAGE, limit=8), sequence(PAGE, limit=8)
    schedule.add(old)
    schedule.add(young)
    run(schedule, schedule.plan())
    assert [piece.sequence for piece in schedule.plan()] == [old]
    assert (schedule.preemptions, young.cached, young.pages) == (1, 0, [])
    assert list(schedule.waiting) == [young]


def test_a_beginning_that_was_computed_is_taken_over_to_the_last_full_page() -> None:
    schedule = Schedule(Pages(TOTAL), max_batch=4, chunk=100)
    first, same, longer, other = sequence(40, token=1), sequence(32, token=1), sequence(50, token=1), sequence(30)
    schedule.add(first)
    run(schedule, schedule.plan())
    for one in (same, longer, other):
        schedule.add(one)
    starts = {piece.sequence: piece.start for piece in schedule.plan()}
    assert starts == {first: 40, same: PAGE, longer: 2 * PAGE, other: 0}  # a token of each is left to be run
    assert first.pages[:2] == longer.pages[:2]
    assert not set(first.pages[2:]) & {*same.pages[1:], *longer.pages[2:], *other.pages}
    assert schedule.reused_tokens == 3 * PAGE


def test_one_beginning_asked_for_several_times_at_once_is_computed_once() -> None:
    schedule = Schedule(Pages(TOTAL), max_batch=8, chunk=100)
    sequences = [sequence(40, token=1) for _ in range(3)]
    for one in sequences:
        schedule.add(one)
    steps = list[list[tuple[int, int]]]()
    for _ in range(2):
        slices = schedule.plan()
        steps.append([(piece.start, piece.count) for piece in slices])
        run(schedule, slices)
    assert steps == [[(0, 40)], [(40, 1), (32, 8), (32, 8)]]


def test_what_is_not_full_or_not_computed_is_not_taken_over() -> None:
    schedule = Schedule(Pages(TOTAL), max_batch=4, chunk=20)
    first, second = sequence(40, token=1), sequence(40, token=1)
    schedule.add(first)
    run(schedule, schedule.plan())  # 20 of 40
    schedule.remove(first)
    schedule.add(second)
    assert [piece.start for piece in schedule.plan()] == [PAGE]


def test_pages_kept_to_be_reused_are_free_and_the_longest_unused_goes_first() -> None:
    pages = Pages(4)
    schedule = Schedule(pages, max_batch=1, chunk=100)
    for token in (1, 2):
        one = sequence(2 * PAGE, limit=1, token=token)
        schedule.add(one)
        run(schedule, schedule.plan())
    assert pages.free == 4
    for again, expected in ((1, PAGE), (3, 0), (1, PAGE), (2, 0)):
        one = sequence(2 * PAGE, limit=1, token=again)
        schedule.add(one)
        slices = schedule.plan()
        assert slices[0].start == expected, again
        run(schedule, slices)


def test_a_sequence_that_gave_way_takes_up_what_is_still_there() -> None:
    schedule = Schedule(Pages(4), max_batch=4, chunk=100)
    old, young = sequence(PAGE, limit=PAGE + 1), sequence(2 * PAGE + 8, limit=12)
    schedule.add(old)
    schedule.add(young)
    while not schedule.preemptions:
        run(schedule, schedule.plan())
    assert young.cached == 0
    while old.finish is None:
        run(schedule, schedule.plan())
    assert [(piece.sequence, piece.start) for piece in schedule.plan()] == [(young, 2 * PAGE)]


def test_removing_a_sequence_that_waits_or_runs_leaves_nothing_behind() -> None:
    pages = Pages(TOTAL)
    schedule = Schedule(pages, max_batch=1, chunk=100)
    runs, waits = sequence(5), sequence(5)
    schedule.add(runs)
    schedule.add(waits)
    schedule.plan()
    schedule.remove(waits)
    schedule.remove(runs)
    assert (pages.free, schedule.running, list(schedule.waiting)) == (TOTAL, [], [])
