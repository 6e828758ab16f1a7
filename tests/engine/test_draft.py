"""The draft: what it guesses, how it keeps up, and what it takes over."""

from typing import Any

import pytest
import torch

from lissom.engine import Engine, Sampling
from lissom.engine.draft import Draft
from lissom.engine.pages import PAGE
from lissom.engine.runner import Runner
from lissom.engine.schedule import Slice
from lissom.engine.sequence import Sequence

GREEDY = Sampling(temperature=0.0, max_tokens=30)


class Counting(Runner):
    """Notes what it has been given to run."""

    def __init__(self, model: Any, *, pages: int) -> None:
        super().__init__(model, pages=pages)
        self.ran: list[list[tuple[int, int]]] = []

    def forward(self, slices: Any) -> Any:
        """As ever."""
        self.ran.append([(piece.start, piece.count) for piece in slices])
        return super().forward(slices)


def read(engine: Engine, prompt: list[int]) -> Sequence:
    """A sequence that has one token."""
    sequence = engine.add(prompt, GREEDY)
    engine.step()
    return sequence


def drafting(model: Any, chunk: int = 100) -> tuple[Draft, Counting]:
    runner = Counting(model, pages=32)
    return Draft(runner, chunk=chunk, clock=lambda: 0.0), runner


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> Engine:
    return Engine(model, tokenizer, max_tokens_in_cache=32 * PAGE, speculate="off")


def forget(engine: Engine, sequence: Sequence, token: int) -> None:
    """What the engine does when the first guess was wrong."""
    sequence.generated.append(token)
    count = sequence.pending - 1 + len(sequence.guesses)
    engine.schedule.record([Slice(sequence=sequence, start=sequence.cached, count=count)])


def test_it_guesses_what_its_model_says_next(model: Any, engine: Engine) -> None:
    draft, runner = drafting(model)
    sequences = [read(engine, list(range(40, 43))), read(engine, list(range(5, 25)))]
    sequences.reverse()
    for one in sequences:
        engine.schedule.stretch(one, 5)
    draft.guess(dict(zip(sequences, (5, 2), strict=True)))
    for one, count in zip(sequences, (5, 2), strict=True):
        known = torch.tensor([one.tokens(0, one.length)])
        expected = model.generate(known, attention_mask=known * 0 + 1, max_new_tokens=count, do_sample=False)
        assert one.guesses == expected[0, one.length :].tolist()
    assert [len(run) for run in runner.ran] == [2, 2, 1, 1, 1]
    assert [run[0] for run in runner.ran] == [(0, 21), (21, 1), (22, 1), (23, 1), (24, 1)]


def test_what_was_guessed_wrong_is_read_anew(model: Any, engine: Engine) -> None:
    draft, runner = drafting(model)
    sequence = read(engine, list(range(5, 25)))
    engine.schedule.stretch(sequence, 4)
    draft.guess({sequence: 4})
    forget(engine, sequence, token=7)
    assert (sequence.guesses, sequence.drafted) == ([], 21)
    draft.guess({sequence: 1})
    assert runner.ran[-1] == [(21, 1)]


def test_a_long_text_is_read_in_chunks_before_anything_is_guessed(model: Any, engine: Engine) -> None:
    draft, runner = drafting(model, chunk=8)
    sequence = read(engine, list(range(5, 25)))
    for _ in range(2):
        draft.guess({sequence: 1})
        assert sequence.guesses == []
    draft.guess({sequence: 1})
    assert len(sequence.guesses) == 1
    assert runner.ran == [[(0, 8)], [(8, 8)], [(16, 5)]]


def test_a_beginning_that_it_has_read_for_another_is_not_read_again(model: Any, engine: Engine) -> None:
    draft, runner = drafting(model)
    prompt = list(range(5, 45))
    first = read(engine, prompt)
    second = read(engine, [*prompt, 3])
    assert first.pages[:2] == second.pages[:2]
    draft.guess({second: 1})
    draft.guess({first: 1})
    assert runner.ran == [[(0, 42)], [(32, 10)]]


def test_what_passes_cost_is_seen_but_not_what_reading_costs(model: Any, engine: Engine) -> None:
    ticks = iter(range(1000))
    draft = Draft(Runner(model, pages=32), chunk=100, clock=lambda: float(next(ticks)))
    sequence = read(engine, list(range(5, 25)))
    engine.schedule.stretch(sequence, 9)
    draft.guess({sequence: 1})
    assert draft.line.at(1) == 0
    forget(engine, sequence, token=7)
    engine.schedule.stretch(sequence, 9)
    draft.guess({sequence: 9})
    assert draft.line.at(1) == 1
