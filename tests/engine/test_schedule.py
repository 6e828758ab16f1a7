"""Pages and schedule without a model: batching is only bookkeeping, so thousands of runs take a moment."""

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


def sequence(prompt: int, limit: int = 4) -> Sequence:
    return Sequence(
        prompt=(0,) * prompt,
        sampling=Sampling(max_tokens=limit),
        limit=limit,
        detokenizer=Detokenizer(lambda tokens: "x" * len(tokens)),
        random=np.random.default_rng(0),
    )


def run(schedule: Schedule, slices: list[Slice]) -> None:
    """What the engine does around a forward pass."""
    for piece in slices:
        piece.sequence.cached += piece.count
        if piece.completes:
            piece.sequence.accept(Choice(token=1, logprob=0.0), end=())
            if piece.sequence.finish is not None:
                schedule.remove(piece.sequence)


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 40))
def test_every_sequence_finishes_within_the_limits(lengths: list[tuple[int, int]], batch: int, chunk: int) -> None:
    pages = Pages(TOTAL)
    schedule = Schedule(pages, max_batch=batch, chunk=chunk)
    sequences = [sequence(prompt, limit) for prompt, limit in lengths]
    for one in sequences:
        schedule.add(one)
    while any(one.finish is None for one in sequences):
        slices = schedule.plan()
        prompts = sum(piece.count for piece in slices if piece.sequence.pending > 1)
        owned = [page for one in sequences for page in one.pages]
        assert slices, "the oldest sequence always makes progress"
        assert prompts <= chunk
        assert len(schedule.running) <= batch
        assert len(owned) == len(set(owned)) == TOTAL - pages.free
        assert all(len(p.sequence.pages) >= pages_for(p.start + p.count) for p in slices)
        run(schedule, slices)
    assert pages.free == TOTAL
    assert [len(one.generated) for one in sequences] == [limit for _, limit in lengths]


@settings(deadline=None, max_examples=50)
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
